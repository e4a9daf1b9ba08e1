"""Warm processes: start once, call many times, each call with a deadline.

``WarmProcess`` is the caller's side, ``serve`` the side of the process that does the work. They
speak over a private socket, never over standard output, since libraries print there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from device_agents.children import Child, describe_exit, end_child, start_child
from device_agents.frames import BadFrame, Frames, StreamClosed

__all__ = [
    "ProcessDied",
    "ProcessError",
    "ProcessTimeout",
    "RemoteFailure",
    "WarmProcess",
    "serve",
]

_SOCKET_VARIABLE = "CPRUNE_WARM_SOCKET"
_LOG_LIMIT_BYTES = 8 << 20
_LOG_KEPT_BYTES = 64 << 10
_TAIL_BYTES = 4 << 10

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class ProcessError(RuntimeError):
    """A warm process did not answer. The next call starts a new one."""


class ProcessTimeout(ProcessError):
    """The process did not answer before the deadline; it and its children have been killed."""


class ProcessDied(ProcessError):
    """The process ended in the middle of a call, or would not start."""


class RemoteFailure(RuntimeError):
    """The called function raised; the process lives on."""

    def __init__(self, kind: str, message: str, trace: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        """Class name of the exception that was raised."""
        self.message = message
        self.trace = trace
        """The traceback, as text."""
        if trace:
            self.add_note(f"raised in the called process:\n{trace}")


class WarmProcess:
    """``python -m MODULE ARGS``, started at the first call and kept for the next ones.

    Any thread may call; calls are made one at a time. The process cannot outlive this one.
    """

    def __init__(
        self,
        module: str,
        args: Sequence[str] = (),
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 120.0,
        log_path: Path | None = None,
    ) -> None:
        """``env`` is added to the environment; ``start_timeout_s`` bounds imports, not calls.

        What the process prints goes to ``log_path`` (cut to its end when it passes 8 MiB), or to an
        unnamed temporary file of the same bound.
        """
        self.name = name or module
        self._argv = [sys.executable, "-m", module, *args]
        self._env = dict(env or {})
        self._start_timeout_s = start_timeout_s
        self._log: IO[bytes] = (
            tempfile.TemporaryFile() if log_path is None else log_path.open("a+b", buffering=0)
        )
        flags = fcntl.fcntl(self._log, fcntl.F_GETFL)
        fcntl.fcntl(self._log, fcntl.F_SETFL, flags | os.O_APPEND)
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._frames: Frames | None = None
        self._is_ready = False
        self._calls = 0
        self._stops = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running process; None before its start and after its end."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def prepare(self) -> None:
        """Begin to start the process, if it does not run, and do not wait: the first call does."""
        with self._locked(self._start_timeout_s, "start"):
            self._spawn()

    def start(self) -> int:
        """Start the process if it does not run and wait until it is ready; its process id.

        Raises ``ProcessDied`` or ``ProcessTimeout`` (after ``start_timeout_s``).
        """
        with self._locked(self._start_timeout_s, "start"):
            return self._start()

    def call(
        self, method: str, payload: dict[str, Any] | None = None, *, timeout_s: float
    ) -> dict[str, Any]:
        """Call ``method`` and return its answer.

        ``payload`` and answer are dictionaries of JSON values; ``bytes`` may stand at their top
        level. ``timeout_s`` starts when the process is ready and this call's turn has come;
        starting has a limit of its own. Raises ``ProcessTimeout``, ``ProcessDied`` or
        ``RemoteFailure``.
        """
        with self._locked(self._start_timeout_s + timeout_s, method):
            self._start()
            self._calls += 1
            request = {**(payload or {}), "__method__": method, "__call__": self._calls}
            answer = self._exchange(request, timeout_s, f"an answer to {method!r}")
            if answer.pop("__call__", None) != self._calls:
                self._kill()
                raise ProcessDied(f"{self.name}: answered another call than {method!r}; killed")
        failure = answer.pop("__failure__", None)
        if failure is not None:
            raise RemoteFailure(*failure)
        return answer

    def call_again(
        self, method: str, payload: dict[str, Any] | None = None, *, timeout_s: float
    ) -> dict[str, Any]:
        """As ``call``; once more where the process ended in the middle, unless ``stop`` ended it.

        For processes that work in children, so that no call ends them.
        """
        stops = self._stops
        try:
            return self.call(method, payload, timeout_s=timeout_s)
        except ProcessDied:
            if self._stops != stops:
                raise
            return self.call(method, payload, timeout_s=timeout_s)

    def stop(self) -> None:
        """Kill the process and its children, also from another thread than one that is calling."""
        self._stops += 1
        self._kill()

    def tail(self, size: int = _TAIL_BYTES) -> str:
        """The last ``size`` bytes that the process printed."""
        fd = self._log.fileno()
        end = os.fstat(fd).st_size
        return os.pread(fd, size, max(0, end - size)).decode(errors="replace").strip()

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def _locked(self, timeout_s: float, what: str) -> Any:
        if not self._lock.acquire(timeout=timeout_s):
            raise ProcessTimeout(
                f"{self.name}: still busy after {timeout_s:g} s; {what!r} not sent"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _start(self) -> int:
        child = self._spawn()
        if not self._is_ready:
            self._exchange(None, self._start_timeout_s, "its start")
            self._is_ready = True
        return child.pid

    def _spawn(self) -> Child:
        if self._child is not None and self._child.poll() is None and self._frames is not None:
            return self._child
        self._kill()
        ours, theirs = socket.socketpair()
        with theirs:
            env = {**self._env, _SOCKET_VARIABLE: str(theirs.fileno())}
            self._child = start_child(
                self._argv, env=env, log=self._log, pass_fds=[theirs.fileno()]
            )
        self._frames, self._is_ready = Frames(ours), False
        return self._child

    def _exchange(
        self, request: dict[str, Any] | None, timeout_s: float, what: str
    ) -> dict[str, Any]:
        child, frames = self._child, self._frames
        if child is None or frames is None:
            raise ProcessDied(f"{self.name}: stopped while waiting for {what}")
        deadline = time.monotonic() + timeout_s

        def on_tick() -> None:
            self._bound_log()
            if child.poll() is not None:
                raise StreamClosed("process ended")

        in_step = False  # whether both ends agree on what comes next, so that the process is kept
        try:
            if request is not None:
                frames.send(request, deadline, on_tick)
            answer = frames.receive(deadline, on_tick)
            in_step = True
        except TimeoutError:
            raise ProcessTimeout(
                f"{self.name}: waited {timeout_s:g} s for {what}; process {child.pid} was killed"
            ) from None
        except (StreamClosed, BadFrame) as error:
            with contextlib.suppress(Exception):
                child.wait(timeout=1.0)
            code = end_child(child)
            raise ProcessDied(
                f"{self.name}: process {child.pid} ended by {describe_exit(code)} while waiting "
                f"for {what} ({error}); it printed last: {self.tail() or 'nothing'}"
            ) from error
        except TypeError:
            in_step = True  # the payload is not JSON; nothing of it was sent
            raise
        finally:
            if not in_step:
                self._kill()
        return answer

    def _kill(self) -> None:
        child, self._child = self._child, None
        frames, self._frames = self._frames, None
        if child is not None:
            end_child(child)
        if frames is not None:
            frames.close()

    def _bound_log(self) -> None:
        fd = self._log.fileno()
        size = os.fstat(fd).st_size
        if size > _LOG_LIMIT_BYTES:
            kept = os.pread(fd, _LOG_KEPT_BYTES, size - _LOG_KEPT_BYTES)
            os.ftruncate(fd, 0)
            os.write(fd, kept)


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer calls of a ``WarmProcess`` until it closes the stream. The process's main loop.

    An exception of a handler is the caller's ``RemoteFailure``. Raises ``RuntimeError`` when the
    process was not started by a ``WarmProcess``.
    """
    fd = os.environ.pop(_SOCKET_VARIABLE, None)
    if fd is None:
        raise RuntimeError("this module is started by device_agents.processes.WarmProcess only")
    sock = socket.socket(fileno=int(fd))
    sock.set_inheritable(False)
    frames = Frames(sock)
    with contextlib.suppress(StreamClosed):
        frames.send({"ready": True})
        while True:
            request = frames.receive()
            method, number = request.pop("__method__"), request.pop("__call__")
            try:
                frames.send({**_answer(handlers, method, request), "__call__": number})
            except TypeError as error:  # the answer is not JSON; nothing of it was sent
                failure = ["TypeError", f"answer of {method!r}: {error}", ""]
                frames.send({"__failure__": failure, "__call__": number})


def _answer(
    handlers: Mapping[str, Handler], method: str, payload: dict[str, Any]
) -> dict[str, Any]:
    try:
        if method not in handlers:
            raise LookupError(f"no method {method!r}; there are {sorted(handlers)}")
        return handlers[method](payload)
    except Exception as error:
        failure = [type(error).__name__, str(error), traceback.format_exc()]
        return {"__failure__": failure}
