"""Running each job in a forked child of a warm process, several at a time, each with its own limit.

A fork of a process that has TVM imported costs some 20 ms instead of seconds. A child that crashes
or runs out of time is gone with all it did, its temporary files included; the parent and the other
children do not notice.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_agents.tether import die_with_parent

_STARTED = b"S"
_NO_SPACE = os.strerror(errno.ENOSPC)
"""As a linker says it, too."""
_KILLED = (signal.SIGKILL, signal.SIGTERM)
"""Signals that come from outside of a job."""


@dataclass
class _Child:
    position: int
    pid: int
    pipe: int
    folder: str
    waiting_since: float
    started_at: float | None = None
    received: bytearray = field(default_factory=bytearray)


def run_forked(
    jobs: Sequence[Callable[[], dict[str, Any]]],
    *,
    timeout_s: float,
    wait_s: float,
    parallel: int,
    working: Callable[[], AbstractContextManager[None]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Run every job in a child; return their results in order.

    A result is what the job returned with ``seconds`` added, or ``{"error": text}``, with
    ``"unfinished": "time"`` where it took too long, and ``"machine"`` where memory, disk, processes
    or cores were short or somebody killed it.
    ``timeout_s`` counts from when the child has the cores (``working``), for which it may wait
    ``wait_s``. A child ends with the thread that called, however that ends. Temporary files lie in
    ``folder``: of children that are killed with their parent they stay there.
    """
    results: list[dict[str, Any]] = [{} for _ in jobs]
    waiting = list(enumerate(jobs))
    running: dict[int, _Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                position, job = waiting.pop(0)
                try:
                    child = _fork(position, job, working, folder)
                except OSError as error:  # no process, no folder, no pipe
                    if running:  # what these take they give back
                        waiting.insert(0, (position, job))
                        break
                    told = f"{type(error).__name__}: {error}"
                    results[position] = {"error": told, "unfinished": "machine"}
                    continue
                running[child.pipe] = child
            ready, _, _ = select.select(list(running), [], [], 0.05)
            for pipe in ready:
                child = running[pipe]
                data = os.read(pipe, 1 << 20)
                if data:
                    child.received += data
                    if child.started_at is None:
                        child.started_at = time.monotonic()
                    continue
                del running[pipe]
                results[child.position] = _reap(child)
            for child in list(running.values()):
                late = _lateness(child, timeout_s, wait_s)
                if late:
                    del running[child.pipe]
                    _kill(child)
                    reason = "time" if child.started_at else "machine"
                    results[child.position] = {"error": late, "unfinished": reason}
    finally:
        for child in running.values():
            _kill(child)
    return results


def _fork(
    position: int,
    job: Callable[[], dict[str, Any]],
    working: Callable[[], AbstractContextManager[None]],
    parent_folder: Path,
) -> _Child:
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    folder = tempfile.mkdtemp(prefix="job-", dir=parent_folder)
    pipe: tuple[int, ...] = ()
    try:
        reader, writer = pipe = os.pipe()
        pid = os.fork()
    except OSError:
        for end in pipe:
            os.close(end)
        os.rmdir(folder)
        raise
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.setpgid(0, 0)
            die_with_parent(parent)
            os.environ["TMPDIR"] = tempfile.tempdir = folder  # the linker's, too
            data = _carry_out(job, working, writer)
            while data:
                data = data[os.write(writer, data) :]
            code = 0
        except BaseException as error:
            os.write(2, f"job {position}: {error!r}\n".encode())
        finally:
            os._exit(code)
    os.close(writer)
    return _Child(position, pid, reader, folder, time.monotonic())


def _carry_out(
    job: Callable[[], dict[str, Any]],
    working: Callable[[], AbstractContextManager[None]],
    writer: int,
) -> bytes:
    """The job's result as it goes to the parent; what it raises is its result too."""
    try:
        with working():
            os.write(writer, _STARTED)
            began = time.monotonic()
            result = job()
            return json.dumps({**result, "seconds": time.monotonic() - began}).encode()
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {_last_lines(str(error))}"}
        is_short = isinstance(error, OSError | MemoryError) or _NO_SPACE in str(error)
        return json.dumps({**told, "unfinished": "machine"} if is_short else told).encode()


def _lateness(child: _Child, timeout_s: float, wait_s: float) -> str:
    now = time.monotonic()
    if child.started_at is None:
        if now - child.waiting_since > wait_s:
            return f"waited longer than {wait_s:g} s for the host's cores"
        return ""
    if now - child.started_at > timeout_s:
        return f"took longer than {timeout_s:g} s"
    return ""


def _reap(child: _Child) -> dict[str, Any]:
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    shutil.rmtree(child.folder, ignore_errors=True)
    if os.WIFSIGNALED(status):
        ended_by = signal.Signals(os.WTERMSIG(status))
        if ended_by in _KILLED:
            told = f"killed with {ended_by.name} (for want of memory, perhaps)"
            return {"error": told, "unfinished": "machine"}
        return {"error": f"crashed with {ended_by.name}"}
    try:
        result: dict[str, Any] = json.loads(bytes(child.received).removeprefix(_STARTED))
    except ValueError:  # nothing, or not all of it
        return {"error": "ended without a result"}
    return result


def _kill(child: _Child) -> None:
    for target in (-child.pid, child.pid):
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.close(child.pipe)
    os.waitpid(child.pid, 0)
    shutil.rmtree(child.folder, ignore_errors=True)


def _last_lines(text: str, count: int = 6) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "\n".join(lines[-count:])[:2000]
