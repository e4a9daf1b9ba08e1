"""What can be read about this machine: processor, identity, temperature, cores."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import psutil

_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "x86_pkg_temp")


def cpu_model() -> str:
    """The processor's name as the kernel gives it, or the architecture where it gives none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for field in ("model name", "Model", "Hardware", "cpu model"):
        match = re.search(rf"^{field}\s*:\s*(\S.*)$", text, re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.machine()


def device_model(threads: int, model: str | None = None) -> str:
    """A name for devices whose latencies may be compared, such as ``amd-epyc-9b14-2t``.

    ``model`` is the processor's name; without one, this machine's.
    """
    name = (model or cpu_model()).lower()
    name = re.sub(r"\((r|tm)\)|\bcpu\b|@.*$|\b\d+-core\b|\bprocessor\b", " ", name)
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{slug or 'cpu'}-{threads}t"


def allowed_cores() -> frozenset[int]:
    """The cores this process may run on."""
    return frozenset(os.sched_getaffinity(0))


def boot_id() -> str:
    """A name of this machine since it was last started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node() or "unknown"


def cpu_temperature_c() -> float | None:
    """The hottest processor sensor in degrees Celsius; None where none can be read."""
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError, RuntimeError):
        return None
    readings = [reading.current for name in _CPU_SENSORS for reading in sensors.get(name, [])]
    return max(readings, default=None)
