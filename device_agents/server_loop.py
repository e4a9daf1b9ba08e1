"""The loop of a device server: tracker, strangers on the port and the session, all polled.

Each session runs TVM's own server loop in a forked process with a folder of its own; the loop ends
it at its time limit or when its client has gone, outlives its crash, and offers the device again at
once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import select
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device_agents.children import describe_exit, kill_tree
from device_agents.device_functions import register as register_device
from device_agents.registration import Registration
from device_agents.tether import die_with_parent
from device_agents.tracker_wire import RPC_MAGIC, RPC_MISMATCH, pack_int, unpack_int

LISTENING_FILE = "listening.json"

SESSION_FOLDERS = "cprune-session-"
_LOCK_FILE = "server.lock"

_LOCK_WAIT_S = 3.0
_HANDSHAKE_S = 5.0
_MAX_HANDSHAKES = 64
_MAX_KEY_BYTES = 4096
_TICK_S = 0.5
_REFUSAL_SEND_S = 1.0
_FAREWELL_S = 1.0


class FolderInUse(RuntimeError):
    """Another server has the folder."""


@dataclass
class _Handshake:
    """A connection that has not said yet who it is."""

    sock: socket.socket
    deadline: float
    data: bytearray = field(default_factory=bytearray)


@dataclass
class _Session:
    """A client that has the device."""

    pid: int
    pid_fd: int
    sock: socket.socket
    folder: Path
    deadline: float
    limit_s: int
    client_left: bool = False


class DeviceServer:
    """The server's loop. TVM's runtime has to be imported before."""

    def __init__(
        self,
        tracker: tuple[str, int],
        key: str,
        *,
        host: str,
        port: int = 0,
        work_dir: Path,
        max_lease_s: int,
        register: Callable[[Path, str], None] = register_device,
    ) -> None:
        """Listen on ``host`` (port 0: a free one); leases are cut to ``max_lease_s`` seconds.

        ``register`` is called in each session's process with its folder and the key, and registers
        what the device offers.

        Raises ``FolderInUse`` where ``work_dir`` is another server's.
        """
        self._key, self._work_dir, self._max_lease_s = key, work_dir, max_lease_s
        self._register = register
        work_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_of(work_dir)
        self._listener = socket.create_server((host, port), backlog=64)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._registration = Registration(tracker, key, self.port, _log)
        self._handshakes: dict[int, _Handshake] = {}
        self._session: _Session | None = None
        self._count = 0
        for stale in work_dir.glob(f"{SESSION_FOLDERS}*"):
            shutil.rmtree(stale, ignore_errors=True)
        ready = work_dir / (LISTENING_FILE + ".new")
        ready.write_text(json.dumps({"pid": os.getpid(), "port": self.port}))
        ready.replace(work_dir / LISTENING_FILE)

    def run(self) -> None:
        """Serve until the process is ended."""
        _log(f"listening on port {self.port}")
        self._registration.offer()
        while True:
            self._registration.tick()
            self._expire(time.monotonic())
            for fd in self._ready():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._registration.fileno():
                    self._registration.handle()
                elif self._session and fd == self._session.pid_fd:
                    self._end_session("")
                elif self._session and fd == self._session.sock.fileno():
                    self._hurry(self._session)
                elif fd in self._handshakes:
                    self._shake(self._handshakes[fd])

    def _ready(self) -> list[int]:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        timeout_s = _TICK_S
        tracker_fd = self._registration.fileno()
        if tracker_fd is not None:
            poll.register(tracker_fd, self._registration.events())
        for handshake in self._handshakes.values():
            poll.register(handshake.sock, select.POLLIN)
        if self._session:
            poll.register(self._session.pid_fd, select.POLLIN)
            if not self._session.client_left:
                poll.register(self._session.sock, select.POLLRDHUP)
            timeout_s = min(timeout_s, max(0.0, self._session.deadline - time.monotonic()))
        return [fd for fd, _ in poll.poll(timeout_s * 1000 + 1)]

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self._handshakes) >= _MAX_HANDSHAKES:
            self._forget(next(iter(self._handshakes.values())))
        deadline = time.monotonic() + _HANDSHAKE_S
        self._handshakes[sock.fileno()] = _Handshake(sock, deadline)

    def _shake(self, handshake: _Handshake) -> None:
        """Take what has come of ``[magic][length]["client:MATCHKEY -timeout=N"]``."""
        data = handshake.data
        try:
            chunk = handshake.sock.recv(8 + _MAX_KEY_BYTES - len(data))
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        data += chunk
        size = unpack_int(data[4:]) if len(data) >= 8 else 0
        stranger = len(data) >= 4 and unpack_int(data) != RPC_MAGIC
        if not chunk or stranger or not 0 <= size <= _MAX_KEY_BYTES:
            self._forget(handshake)
        elif len(data) >= 8 + size:
            self._admit(handshake, bytes(data[8 : 8 + size]).decode(errors="replace"))

    def _admit(self, handshake: _Handshake, greeting: str) -> None:
        name, *options = greeting.split() or [""]
        sock = handshake.sock
        matchkey = self._registration.matchkey
        if self._session or matchkey is None or name != f"client:{matchkey}":
            with contextlib.suppress(OSError):
                sock.send(pack_int(RPC_MISMATCH))
            self._forget(handshake)
            return
        del self._handshakes[sock.fileno()]
        self._registration.take()
        answer = f"server:{self._key}".encode()
        try:
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(pack_int(RPC_MAGIC) + pack_int(len(answer)) + answer)
            self._start_session(sock, lease_s(options, self._max_lease_s))
        except OSError as error:
            _log(f"no session: {error}")
            sock.close()
            self._registration.offer()

    def _start_session(self, sock: socket.socket, limit_s: int) -> None:
        self._count += 1
        folder = self._work_dir / f"{SESSION_FOLDERS}{self._count}"
        folder.mkdir()
        sys.stdout.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._serve(parent, sock, folder)
        deadline = time.monotonic() + limit_s
        self._session = _Session(pid, os.pidfd_open(pid), sock, folder, deadline, limit_s)

    def _serve(self, parent: int, sock: socket.socket, folder: Path) -> None:
        """The session's own process: TVM's server loop until the client leaves."""
        code = 1
        try:
            os.setsid()
            die_with_parent(parent)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.close(self._lock)  # the folder is free as soon as the server is gone
            self._listener.close()
            self._registration.close()
            for handshake in self._handshakes.values():
                handshake.sock.close()
            os.chdir(folder)

            from tvm.rpc import _ffi_api

            self._register(folder, self._key)
            _ffi_api.ServerLoop(sock.fileno())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @staticmethod
    def _hurry(session: _Session) -> None:
        """The client has gone: a kernel that does not end must not keep the device from others."""
        session.client_left = True
        session.deadline = min(session.deadline, time.monotonic() + _FAREWELL_S)

    def _expire(self, now: float) -> None:
        for handshake in [h for h in self._handshakes.values() if now > h.deadline]:
            self._forget(handshake)
        if self._session and now >= self._session.deadline:
            over = f"the session's {self._session.limit_s} s are over; ask for more"
            left = self._session.client_left
            self._end_session("" if left else f"RPCSessionTimeoutError: {over}")

    def _end_session(self, refusal: str) -> None:
        """Reap the session's process, tell the client if it was cut off, offer the device again."""
        session, self._session = self._session, None
        if session is None:
            return
        kill_tree(session.pid)  # also what the session started and left behind
        _, status = os.waitpid(session.pid, 0)
        os.close(session.pid_fd)
        if refusal:
            _log(refusal)
            with contextlib.suppress(Exception):
                _send_refusal(session.sock, refusal)
        elif status:
            _log(f"a session ended by {describe_exit(os.waitstatus_to_exitcode(status))}")
        session.sock.close()
        shutil.rmtree(session.folder, ignore_errors=True)
        self._registration.offer()

    def _forget(self, handshake: _Handshake) -> None:
        del self._handshakes[handshake.sock.fileno()]
        handshake.sock.close()


def _lock_of(folder: Path) -> int:
    """A lock on the folder, which ends with this process. One that is ending is waited for."""
    lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_TICK_S)
                continue
            os.close(lock)
            raise FolderInUse(
                f"{folder} is in use by another device server: give each a --work-dir of its own"
            ) from None


def lease_s(options: Sequence[str], cap_s: int) -> int:
    """Whole seconds a session may last, by its ``-timeout=N`` option and the cap.

    Some clients send fractions; they are rounded up. What is no positive number counts as no wish.
    """
    wish = 0.0
    for option in options:
        match = re.fullmatch(r"-timeout=(\d+(?:\.\d+)?)", option)
        if match:
            wish = float(match.group(1))
    return min(cap_s, int(-(-wish // 1))) if wish > 0 else cap_s


def _send_refusal(sock: socket.socket, text: str) -> None:
    from tvm.rpc import _ffi_api

    seconds, micros = int(_REFUSAL_SEND_S), 0
    timeout = seconds.to_bytes(8, sys.byteorder) + micros.to_bytes(8, sys.byteorder)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
    _ffi_api.ReturnException(sock.fileno(), text)


def _log(text: str) -> None:
    print(f"{time.strftime('%F %T')} {text}", flush=True)
