"""Open a session on a free device, with every wait bounded and every failure named.

A device that freezes in the middle of a session hangs its client inside TVM for ever: nothing in a
session after the handshake has a deadline of its own. Use sessions in a process that its owner
calls through ``device_agents.processes.WarmProcess``, whose deadline kills it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agents.device_functions import DEVICE_INFO
from device_agents.tracker_wire import (
    REQUEST,
    SUCCESS,
    TrackerConnection,
    TrackerSummary,
    TrackerUnreachable,
    tracker_summary,
)

MAX_SESSIONS = 32
"""TVM's limit of sessions in one process, those included whose objects are still referred to."""

_POLL_S = 0.1
_SUMMARY_S = 2.0
_HANDSHAKE_S = 10.0

_open_sessions = 0


class NoDevice(RuntimeError):
    """No device was to be had in time; the message says why."""


class DeviceSilent(RuntimeError):
    """The device accepted the connection and did not answer: it is frozen or out of reach."""


class WrongThreads(RuntimeError):
    """The device's runtime uses another number of threads than the target says."""


class WrongCores(RuntimeError):
    """The device's server runs on other cores than the target says."""


class NoSuchPlace(RuntimeError):
    """The device has no accelerator of the kind that the target names."""


class SessionLimit(RuntimeError):
    """This process holds as many sessions as TVM allows."""


@dataclass(frozen=True)
class DeviceInfo:
    """What a device says about itself."""

    device: str
    """Which physical device it is: the machine since its start, the key, the cores."""
    cpu_model: str
    threads: int
    cores: tuple[int, ...]
    temperature_c: float | None
    simulated: bool = False
    """Whether its latencies are made up: see ``device_agents.emulated``."""


class Session:
    """An open session. Close it: an open one keeps the device from everybody else."""

    def __init__(self, rpc: Any, key: str, address: tuple[str, int], threads: int | None) -> None:
        """``key`` and ``address`` name the device if it does not tell who it is."""
        global _open_sessions
        _open_sessions += 1
        self.rpc = rpc
        """TVM's RPC session; None after ``close``."""
        self.address = address
        """Host and port of the device's server."""
        self._name = f"{key}@{address[0]}:{address[1]}"
        self._threads = threads
        self._uploads = 0

    def info(self, cores: Sequence[int] | None = None) -> DeviceInfo:
        """Ask the device about itself. Raises ``WrongThreads`` when its thread count is not the
        wanted one, ``WrongCores`` when it runs on others than ``cores``.

        Another agent's server may know nothing but its threads; its device goes by key and address.
        """
        ask = self.function(DEVICE_INFO)
        if ask is None:
            info = DeviceInfo(self._name, "unknown", self._read_threads(), (), None)
        else:
            facts = json.loads(str(ask()))
            info = DeviceInfo(**{**facts, "cores": tuple(facts["cores"])})
        self._check_threads(info.threads)
        if cores is not None and set(info.cores) != set(cores):
            raise WrongCores(
                f"the device {self._name} runs on cores {sorted(info.cores)}, targets[].cores says "
                f"{sorted(cores)}: something else has set its affinity"
            )
        return info

    def function(self, name: str) -> Any:
        """A function of the device's runtime; None where it has none of this name."""
        try:
            return self.rpc.get_function(name)
        except AttributeError:
            return None

    def place(self, kind: str) -> Any:
        """Where programs run, for tensors and evaluators: the remote ``cpu``, ``cuda`` and so on.

        Raises ``NoSuchPlace`` when the device has none of the kind.
        """
        place = self.rpc.device(kind, 0)
        if kind != "cpu" and not place.exist:
            raise NoSuchPlace(
                f"the device {self._name} has no {kind}: start its server where there is one, or "
                "correct targets[].tvm_target"
            )
        return place

    def upload(self, path: Path, name: str | None = None) -> str:
        """Send a file to the session's folder and return its name there.

        Without ``name`` a new one is made, with the file's suffixes: a second file under the name
        of a loaded one would crash the session.
        """
        self._uploads += 1
        remote = name or f"u{self._uploads}{''.join(path.suffixes[-2:])}"
        self.rpc.upload(str(path), remote)
        return remote

    def load(self, path: Path) -> Any:
        """Send a compiled library and return its remote module."""
        return self.rpc.load_module(self.upload(path))

    def close(self) -> None:
        """Give the device back. Objects of the session are unusable from then on; drop them too, as
        TVM counts a session until the last of them is gone."""
        global _open_sessions
        rpc, self.rpc = self.rpc, None
        if rpc is None:
            return
        _open_sessions -= 1
        with contextlib.suppress(Exception):
            rpc.get_function("CloseRPCConnection")()

    def check_threads(self) -> None:
        """Raises ``WrongThreads`` when the device's thread count is not the wanted one.

        Works on every TVM RPC server, also on one of another agent that knows no ``info``.
        """
        if self._threads is not None:
            self._check_threads(self._read_threads())

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_threads(self) -> int:
        return int(self.rpc.get_function("runtime.NumThreads")())

    def _check_threads(self, threads: int) -> None:
        if self._threads is not None and threads != self._threads:
            raise WrongThreads(
                f"the device uses {threads} threads, targets[].threads says {self._threads}: start "
                "its server with TVM_NUM_THREADS set to that, or correct targets[].threads"
            )


def open_session(
    host: str,
    port: int,
    key: str,
    lease_s: int,
    wait_s: float,
    *,
    threads: int | None = None,
    handshake_s: float = _HANDSHAKE_S,
) -> Session:
    """Wait up to ``wait_s`` seconds for a free device ``key`` of the tracker and open a session.

    The device ends the session after ``lease_s`` seconds (whole ones: other servers abort on
    fractions). ``threads``: the thread count the device must have; None does not check.
    Raises ``NoDevice``, ``DeviceSilent`` (no answer to the handshake in ``handshake_s`` seconds),
    ``WrongThreads`` or ``SessionLimit``.
    """
    if _open_sessions >= MAX_SESSIONS:
        raise SessionLimit(f"{_open_sessions} sessions are open in this process: close some")
    deadline = time.monotonic() + wait_s
    while True:
        address, device_port, matchkey = _request(host, port, key, deadline)
        try:
            rpc = _connect(address, device_port, matchkey, int(lease_s), handshake_s)
        except DeviceSilent:
            raise
        except Exception as error:  # the device went away, or this offer had been replaced
            if "maximum number of RPC session" in str(error):
                gc.collect()
                raise SessionLimit(
                    f"objects of {MAX_SESSIONS} sessions are referred to in this process: drop them"
                ) from error
            if time.monotonic() >= deadline:
                raise NoDevice(
                    f"the device {key!r} at {address}:{device_port} was offered but could not be "
                    f"reached: {error}"
                ) from error
            time.sleep(_POLL_S)
            continue
        session = Session(rpc, key, (address, device_port), threads)
        try:
            session.check_threads()
        except BaseException:
            session.close()
            raise
        return session


def _request(host: str, port: int, key: str, deadline: float) -> tuple[str, int, str]:
    """Address, port and match key of a device that is now ours. Raises ``NoDevice``."""
    problem = "the tracker was not asked"
    while True:
        left = max(0.05, deadline - time.monotonic())
        try:
            summary = tracker_summary(host, port, min(left, _SUMMARY_S))
            if summary.lists(key):
                with TrackerConnection(host, port, left) as connection:
                    answer = connection.ask([REQUEST, key, "", 1], time.monotonic() + left)
                    if answer[0] != SUCCESS:
                        raise TrackerUnreachable(f"the tracker refused the request: {answer}")
                    return str(answer[1][0]), int(answer[1][1]), str(answer[1][2])
            problem = _absence(summary)
        except TimeoutError:
            problem = _shortage(host, port, key)
        except TrackerUnreachable as error:
            problem = str(error)
        if time.monotonic() + _POLL_S >= deadline:
            raise NoDevice(f"no device {key!r}: {problem}")
        time.sleep(_POLL_S)


def _absence(summary: TrackerSummary) -> str:
    keys = ", ".join(summary.keys())
    return f"no device has registered this key; there are: {keys or 'no devices at all'}"


def _shortage(host: str, port: int, key: str) -> str:
    try:
        summary = tracker_summary(host, port, _SUMMARY_S)
    except TrackerUnreachable as error:
        return str(error)
    count = summary.registered(key)
    return f"all {count} devices with this key are leased" if count else _absence(summary)


def _connect(address: str, port: int, matchkey: str, lease_s: int, handshake_s: float) -> Any:
    """TVM's connect, which waits without end by itself: a watchdog cuts its socket off."""
    from tvm import rpc

    with _watchdog(handshake_s) as cut_off:
        try:
            return rpc.connect(address, port, matchkey, lease_s)
        except Exception as error:
            if not cut_off.is_set():
                raise
            raise DeviceSilent(
                f"the device at {address}:{port} did not answer the handshake within "
                f"{handshake_s:g} s: it is frozen or its link is lost; restart its server"
            ) from error


@contextlib.contextmanager
def _watchdog(timeout_s: float) -> Iterator[threading.Event]:
    """Shut every TCP socket down that this process opened since, unless the block ends in time.

    TVM opens its socket inside C++ and releases the interpreter while it waits. Other threads of a
    client process must not open TCP connections meanwhile.
    """
    before = _tcp_sockets()
    finished, cut_off = threading.Event(), threading.Event()

    def watch() -> None:
        if finished.wait(timeout_s):
            return
        cut_off.set()
        for fd in _tcp_sockets() - before:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                sock.shutdown(socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, name="handshake watchdog", daemon=True)
    watcher.start()
    try:
        yield cut_off
    finally:
        finished.set()
        watcher.join()


def _tcp_sockets() -> set[int]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(entry)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    found.add(int(entry))
    return found
