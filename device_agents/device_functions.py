"""What a device offers to its client beside running code: a folder, its facts, a canary.

Registered in the process of one session, after TVM was imported.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agents.attribution import ATTRIBUTE, attribute
from device_agents.host_facts import boot_id, cpu_model, cpu_temperature_c

DEVICE_INFO = "cprune.device_info"
CANARY = "cprune.canary"

_CANARY_SIZE = 192
_CANARY_PRODUCTS = 20
_CANARY_REPEATS = 7


def register(folder: Path, key: str) -> None:
    """Register the functions of a session whose files lie in ``folder``, on the device ``key``."""
    import tvm_ffi
    from tvm.runtime.module import load_module

    def work_path(name: str) -> str:
        return str(folder / name)

    def load(name: str) -> Any:
        return load_module(work_path(name))

    def info() -> str:
        return json.dumps(device_info(key))

    functions: dict[str, Callable[..., Any]] = {
        "tvm.rpc.server.workpath": work_path,
        "tvm.rpc.server.load_module": load,
        DEVICE_INFO: info,
        CANARY: canary_ms,
        ATTRIBUTE: attribute,
    }
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)


def device_info(key: str) -> dict[str, Any]:
    """Facts of this device: ``device`` (which physical one), ``cpu_model``, ``threads`` (as TVM's
    runtime says), ``cores`` (which it may use) and ``temperature_c`` (None where not readable)."""
    import tvm_ffi

    cores = sorted(os.sched_getaffinity(0))
    return {
        "device": f"{boot_id()[:13]}/{key}/{_ranges(cores)}",
        "cpu_model": cpu_model(),
        "threads": int(tvm_ffi.get_global_func("runtime.NumThreads")()),
        "cores": cores,
        "temperature_c": cpu_temperature_c(),
    }


def canary_ms() -> float:
    """Milliseconds that a fixed small workload takes on one core: the median of 7 repeats.

    It grows when the device is throttled or its cores are not its own.
    """
    import numpy

    left = numpy.random.default_rng(0).random((_CANARY_SIZE, _CANARY_SIZE), dtype=numpy.float32)
    times = []
    for _ in range(_CANARY_REPEATS + 1):
        start = time.perf_counter()
        product = left
        for _ in range(_CANARY_PRODUCTS):
            product = left @ product * (2.0 / _CANARY_SIZE)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def _ranges(cores: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2,5``."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and parts[-1][-1] == core - 1:
            parts[-1][-1] = core
        else:
            parts.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
