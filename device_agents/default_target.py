"""The TVM target of this machine's CPU. Needs TVM with its compiler in the process.

Run as ``python -m device_agents.default_target [THREADS]`` it prints the target as JSON, for
callers that keep the compiler (250 MB) out of their own process.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

from device_agents.host_facts import allowed_cores
from device_agents.lean_tvm import block_torch

_FALLBACKS = {"x86_64": ("x86-64-v3", "x86-64"), "aarch64": ("generic",), "arm64": ("generic",)}


class UnknownCpu(ValueError):
    """LLVM does not know the processor's name."""


def host_target(threads: int | None) -> dict[str, Any]:
    """A TVM target for this machine's CPU with ``threads`` cores (None: all that may be used).

    The processor's name is checked against LLVM's list: TVM itself would go on with a generic one
    after a line in its log. Where LLVM does not know it, a baseline of the architecture is taken
    that this machine has. Raises ``UnknownCpu`` where there is none either.
    """
    from tvm.target import codegen

    names = [str(codegen.llvm_get_system_cpu())]
    features = _cpu_flags()
    for name in _FALLBACKS.get(platform.machine(), ()):
        if name != "x86-64-v3" or {"avx2", "fma", "bmi2"} <= features:
            names.append(name)
    cores = threads or len(allowed_cores())
    for name in names:
        target = {"kind": "llvm", "mcpu": name, "num-cores": cores}
        if is_valid_mcpu(name):
            return target
    raise UnknownCpu(
        f"LLVM knows none of {names} on {platform.machine()}: give targets[].tvm_target explicitly"
    )


def is_valid_mcpu(name: str, mtriple: str | None = None) -> bool:
    """Whether LLVM has a processor of this name for the triple (None: this machine's)."""
    from tvm.target import Target, codegen

    target: dict[str, Any] = {"kind": "llvm"}
    if mtriple is not None:
        target["mtriple"] = mtriple
    return name in {str(arch) for arch in codegen.llvm_get_cpu_archlist(Target(target))}


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return set(line.partition(":")[2].split())
    except OSError:  # no /proc here: nothing is known of the flags
        return set()
    return set()


def main() -> None:
    """Print the target as one line of JSON."""
    block_torch()
    print(json.dumps(host_target(int(sys.argv[1]) if len(sys.argv) > 1 else None)))


if __name__ == "__main__":
    main()
