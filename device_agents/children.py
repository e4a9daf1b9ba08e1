"""Start child processes that cannot outlive this one, and kill whole trees of them."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import psutil

_SHIM = str(Path(__file__).with_name("tether.py"))
_SOURCE_ROOT = str(Path(__file__).parent.parent)
_KILL_WAIT_S = 5.0

Child = subprocess.Popen[bytes]


class _Spawner:
    """One thread that lives as long as the process and starts every child.

    The kernel's tie (``PR_SET_PDEATHSIG``) is to the *thread* that started the child: children
    started from a short-lived thread would die with it.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Child], Future[Child]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._loop, name="spawner", daemon=True).start()

    def start(self, job: Callable[[], Child]) -> Child:
        done: Future[Child] = Future()
        self._jobs.put((job, done))
        return done.result()

    def _loop(self) -> None:
        while True:
            job, done = self._jobs.get()
            try:
                done.set_result(job())
            except BaseException as error:
                done.set_exception(error)


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def start_child(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log: IO[Any] | int | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start ``argv`` in a session of its own, killed by the kernel when this process dies.

    ``env`` is added to this process's environment. Standard input is empty; standard output and
    standard error go to ``log`` (None: nowhere). Raises ``OSError`` when no process can be started.
    """
    environment = {**os.environ, **(env or {})}
    paths = [_SOURCE_ROOT, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-I", "-S", _SHIM, str(os.getpid()), *argv]
    sink = subprocess.DEVNULL if log is None else log

    def job() -> Child:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )

    global _spawner
    with _spawner_lock:
        if _spawner is None or _spawner.pid != os.getpid():
            _spawner = _Spawner()
        spawner = _spawner
    return spawner.start(job)


def kill_tree(pid: int) -> None:
    """SIGKILL process ``pid``, its process group if it leads one, and all its descendants.

    Waits up to 5 s for them to end. ``pid`` must be one that has not been reaped yet, so that it
    cannot have become another process's. A process that is gone already is no error.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        victims = {root}
        with contextlib.suppress(psutil.Error):
            root.suspend()  # so that it starts no more children while they are listed
            victims.update(root.children(recursive=True))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == pid and pid != os.getpgid(0):
                os.killpg(pid, signal.SIGKILL)
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        deadline = time.monotonic() + _KILL_WAIT_S
        while any(map(_lives, victims)) and time.monotonic() < deadline:
            time.sleep(0.005)


def _lives(process: psutil.Process) -> bool:
    """A zombie does not: nobody may ever reap it."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_child(child: Child) -> int | None:
    """Kill a child's tree and reap the child; its exit code, or None if it does not die in 5 s."""
    if child.poll() is None:
        kill_tree(child.pid)
    try:
        return child.wait(timeout=_KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        return None


def describe_exit(code: int | None) -> str:
    """``signal SIGSEGV`` or ``exit code 3``."""
    if code is None:
        return "unknown cause"
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
