"""One token for a set of host cores: whoever measures has them alone, whoever works shares them.

Built on ``flock``: the kernel gives a token back when its holder dies, however it dies. A turnstile
before the cores lets a measurer go first: while it waits, no new worker comes in.

A holder's token is on an open file. Programs it starts do not inherit it; a bare ``os.fork`` would
share it, so do not fork without exec while holding one. Tokens do not nest: asking for one in a
thread that holds one of the same cores is an error, at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CORES_WAIT_S = 600.0
"""How long whoever works or measures for a run waits for the cores."""

_POLL_S = 0.002


def lock_dir() -> Path:
    """The folder of this user's lock files: the same for all runs on a machine, and its own on each
    machine."""
    return Path(tempfile.gettempdir()) / f"cprune-{os.getuid()}" / "locks"


class CoresBusy(TimeoutError):
    """The cores were not to be had in time; the message says who holds them."""


class HostCores:
    """The token for the cores called ``name``; equal names in one ``lock_dir`` are one token."""

    def __init__(self, lock_dir: Path, name: str) -> None:
        """``lock_dir`` is made if missing; it has to be on a local file system."""
        lock_dir.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._turnstile = lock_dir / f"{name}.turnstile"
        self._cores = lock_dir / f"{name}.cores"
        self._held = threading.local()

    @contextlib.contextmanager
    def measuring(self, timeout_s: float) -> Iterator[None]:
        """Have the cores alone. Raises ``CoresBusy`` after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        with self._not_nested(), _opened(self._cores) as cores:
            with _opened(self._turnstile) as turnstile:
                self._wait(turnstile, fcntl.LOCK_EX, self._turnstile, deadline, "measure")
                self._wait(cores, fcntl.LOCK_EX, self._cores, deadline, "measure")
            yield

    @contextlib.contextmanager
    def working(self, timeout_s: float) -> Iterator[None]:
        """Share the cores with others that work. Raises ``CoresBusy`` after ``timeout_s`` seconds.

        Hold it for short stretches (one build, one search step, one batch): measurers wait for it.
        """
        deadline = time.monotonic() + timeout_s
        with self._not_nested(), _opened(self._cores) as cores:
            while True:
                with _opened(self._turnstile) as turnstile:
                    self._wait(turnstile, fcntl.LOCK_SH, self._turnstile, deadline, "work")
                    if _locks(cores, fcntl.LOCK_SH):
                        break
                if time.monotonic() >= deadline:
                    raise self._busy(self._cores, "work")
                time.sleep(_POLL_S)
            yield

    def holders(self) -> list[int]:
        """Process ids that hold or share the cores now, as far as this process may see them."""
        return _holders(self._cores)

    @contextlib.contextmanager
    def _not_nested(self) -> Iterator[None]:
        if getattr(self._held, "yes", False):
            raise RuntimeError(f"this thread holds the token of cores {self.name!r} already")
        self._held.yes = True
        try:
            yield
        finally:
            self._held.yes = False

    def _wait(self, fd: int, how: int, path: Path, deadline: float, wish: str) -> None:
        while not _locks(fd, how):
            if time.monotonic() >= deadline:
                raise self._busy(path, wish)
            time.sleep(_POLL_S)

    def _busy(self, path: Path, wish: str) -> CoresBusy:
        pids = self.holders() or _holders(path)
        who = ", ".join(map(_describe, pids)) or "an unseen process"
        return CoresBusy(f"cores {self.name!r} were not free in time to {wish}: held by {who}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def _locks(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holders(path: Path) -> list[int]:
    """From /proc/locks, with lines like ``1: FLOCK ADVISORY WRITE pid major:minor:inode 0 EOF``."""
    with contextlib.suppress(OSError):
        inode = f":{path.stat().st_ino}"
        lines = Path("/proc/locks").read_text().splitlines()
        fields = [line.split() for line in lines if "->" not in line]
        return sorted({int(f[4]) for f in fields if f[1] == "FLOCK" and f[5].endswith(inode)})
    return []


def _describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({command[:80]})"
