"""What can be read about this machine: processor, identity, temperature, cores."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
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


def runs_on(tvm_target: Mapping[str, object] | str) -> str:
    """What a TVM target's programs run on: ``cpu``, or an accelerator's kind (``cuda``)."""
    kind = "llvm" if isinstance(tvm_target, str) else str(tvm_target.get("kind"))
    return "cpu" if kind in ("llvm", "c") else kind


def gpu_model() -> str | None:
    """The first NVIDIA GPU's name as its driver gives it; None where there is none."""
    return _gpu_fact("name")


def gpu_architecture() -> str | None:
    """The first NVIDIA GPU's architecture as compilers name it (sm_90); None without a GPU."""
    capability = _gpu_fact("compute_cap")
    return None if capability is None else f"sm_{capability.replace('.', '')}"


def _gpu_fact(name: str) -> str | None:
    query = ["nvidia-smi", f"--query-gpu={name}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().partition("\n")[0] or None


def allowed_cores() -> frozenset[int]:
    """The cores this process may run on."""
    return frozenset(os.sched_getaffinity(0))


def last_level_cache_bytes() -> int | None:
    """Size of the processor's largest cache; None where the kernel does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) * units.get(match[2], 1))
    return max(sizes, default=None)


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
