"""Simulated devices: real RPC servers that answer a timing after a fixed time and run nothing.

They show how measuring scales without the phones. What they answer says that it is simulated, and
so does everything that is made of it. A rack of them is one process with TVM's runtime, forked for
each device. Run as ``python -m device_agents.emulated --help``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agents.attribution import ATTRIBUTE
from device_agents.children import Child, describe_exit, end_child, start_child
from device_agents.device_functions import CANARY, DEVICE_INFO, device_info, register
from device_agents.device_server import configure_threads
from device_agents.tether import die_with_parent
from device_agents.tracker_wire import TrackerUnreachable, tracker_summary

LATENCY_MS = 1.0
"""What every program takes on such a device, as it says."""

_TIME_EVALUATOR = "runtime.RPCTimeEvaluator"
_REPEATS_ARGUMENT = 5
_POLL_S = 0.05
_MAX_LEASE_S = 3600


class EmulatedRack:
    """``count`` simulated devices under one key; they cannot outlive this process."""

    def __init__(
        self,
        tracker_host: str,
        tracker_port: int,
        key: str,
        count: int,
        *,
        service_s: float,
        start_timeout_s: float = 60.0,
    ) -> None:
        """A timing is answered after ``service_s`` seconds."""
        self._tracker = (tracker_host, tracker_port)
        self._key, self._count, self._service_s = key, count, service_s
        self._start_timeout_s = start_timeout_s
        self._work_dir = Path(tempfile.mkdtemp(prefix="cprune-emulated-"))
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the rack, the devices' parent; None while it does not run."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> EmulatedRack:
        """Start the devices and wait until the tracker lists all of them.

        Raises ``TimeoutError`` when that takes too long, ``RuntimeError`` when the rack ends.
        """
        host, port = self._tracker
        command = [sys.executable, "-m", "device_agents.emulated"]
        command += ["--tracker-host", host, "--tracker-port", str(port), "--key", self._key]
        command += ["--count", str(self._count), "--service-s", str(self._service_s)]
        child = self._child = start_child([*command, "--work-dir", str(self._work_dir)])
        deadline = time.monotonic() + self._start_timeout_s
        while self._free() < self._count:
            if child.poll() is not None:
                raise RuntimeError(f"the simulated devices: {describe_exit(child.returncode)}")
            if time.monotonic() >= deadline:
                self.stop()
                raise TimeoutError(
                    f"waited {self._start_timeout_s:g} s for {self._count} simulated devices"
                )
            time.sleep(_POLL_S)
        return self

    def stop(self) -> None:
        """End all devices."""
        child, self._child = self._child, None
        if child is not None:
            end_child(child)
        shutil.rmtree(self._work_dir, ignore_errors=True)

    def __enter__(self) -> EmulatedRack:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _free(self) -> int:
        try:
            return tracker_summary(*self._tracker).free(self._key)
        except TrackerUnreachable:
            return 0


def register_emulated(folder: Path, key: str, *, number: int, service_s: float) -> None:
    """Register what simulated device ``number`` offers in a session: the functions of a real one,
    but for those that take or tell a time."""
    import tvm_ffi

    register(folder, key)
    facts = device_info(key)
    facts |= {"device": f"{facts['device']}/simulated-{number}", "simulated": True}

    def time_evaluator(*request: Any) -> Any:
        repeats = int(request[_REPEATS_ARGUMENT])

        def evaluate(*_arguments: Any) -> bytes:
            time.sleep(service_s)
            return struct.pack(f"@{repeats}d", *[LATENCY_MS / 1000] * repeats)

        return tvm_ffi.convert_func(evaluate)

    functions: dict[str, Callable[..., Any]] = {
        _TIME_EVALUATOR: time_evaluator,
        DEVICE_INFO: lambda: json.dumps(facts),
        CANARY: lambda: LATENCY_MS,
        ATTRIBUTE: lambda _machine: "{}",  # as by a device that cannot tell
    }
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m device_agents.emulated", description=__doc__)
    parser.add_argument("--tracker-host", required=True)
    parser.add_argument("--tracker-port", required=True, type=int)
    parser.add_argument("--key", required=True, help="what clients ask the tracker for")
    parser.add_argument("--count", required=True, type=int, help="devices under that key")
    parser.add_argument("--service-s", required=True, type=float, help="seconds a timing takes")
    parser.add_argument("--work-dir", required=True, type=Path, help="for the files of sessions")
    options = parser.parse_args()
    configure_threads(1, [])

    from device_agents.lean_tvm import import_runtime

    import_runtime()
    import tvm.rpc  # noqa: F401  # imported here once, and not in every session

    from device_agents.server_loop import DeviceServer

    parent = os.getpid()
    for number in range(options.count):
        if os.fork() == 0:
            die_with_parent(parent)
            DeviceServer(
                (options.tracker_host, options.tracker_port),
                options.key,
                host="127.0.0.1",
                work_dir=options.work_dir / str(number),
                max_lease_s=_MAX_LEASE_S,
                register=functools.partial(
                    register_emulated, number=number, service_s=options.service_s
                ),
            ).run()
    os.wait()  # they serve until the rack is ended, which ends with the first one that fails


if __name__ == "__main__":
    main()
