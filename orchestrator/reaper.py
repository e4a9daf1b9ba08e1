"""Leaves nothing behind: ends what a killed driver had started on this machine.

Ray's processes follow a driver that dies, except for workers that were just being started. So the
driver marks everything it starts through the environment, and starts a reaper that waits for its
end: when the pipe between them closes, whatever still bears the mark is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import psutil

MARK = "CPRUNE_DRIVER_MARK"
"""Environment variable that every process started by one driver inherits."""
GRACE_S = 2.0
"""How long processes that end by themselves are given."""
LIMIT_S = 8.0
"""How long the reaper looks for processes; none may be left ten seconds after a kill."""


def start_reaper() -> subprocess.Popen[bytes]:
    """Mark what this process starts from now on and start its reaper.

    Keep the returned process: closing its standard input, or dying, sets it to work.
    """
    mark = uuid.uuid4().hex
    os.environ.pop(MARK, None)
    reaper = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.reaper", mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.environ[MARK] = mark
    return reaper


def marked(mark: str, variable: str = MARK) -> list[psutil.Process]:
    """Living processes that inherited the mark in this environment variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def reap(mark: str) -> None:
    """Give marked processes a moment to end by themselves, then kill those that are left."""
    began = time.monotonic()
    while time.monotonic() - began < LIMIT_S:
        left = marked(mark)
        if not left:
            return
        if time.monotonic() - began > GRACE_S:
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        time.sleep(0.2)


def main() -> None:
    """Wait for the driver's end, then reap."""
    sys.stdin.buffer.read()
    reap(sys.argv[1])


if __name__ == "__main__":
    main()
