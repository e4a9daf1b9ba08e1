"""Import TVM without what a device process does not need.

``import tvm`` imports torch wherever torch is installed, only to avoid a clash of symbols on one
platform; that costs some 390 MB and seconds. The compiler library costs another 170 MB. A process
that serves, tracks or talks to devices needs neither: about 90 MB remain.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType


def block_torch() -> None:
    """Make ``import torch`` fail in this process, so that ``import tvm`` does without.

    For the entry points of processes that never use torch; call it before TVM is imported. Where
    torch is loaded already nothing changes.
    """
    for name in ("torch", "torchvision"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None blocks an import


def unblock_torch() -> None:
    """Undo ``block_torch``, once TVM is imported, for libraries that look at what is loaded.

    SciPy takes a blocked torch for one that is there.
    """
    for name in ("torch", "torchvision"):
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]


def import_runtime(runs_on: str = "cpu") -> ModuleType:
    """Import and return ``tvm`` with its runtime alone: no torch, no compiler.

    It serves and opens RPC sessions, times functions, runs the Relax VM; it compiles nothing. Where
    TVM is imported already it is returned as it is. ``runs_on`` names an accelerator whose runtime
    is loaded too, where TVM has one (``cuda``). Raises ``OSError`` where its driver is missing.
    """
    block_torch()
    if "tvm" not in sys.modules:
        os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    import tvm
    from tvm import base, libinfo
    from tvm_ffi.libinfo import load_lib_ctypes

    if "tvm_runtime_extra" not in base._LOADED_LIBS:
        # Holds random_fill_for_measure and others that measuring clients call on the device. TVM
        # loads it by itself only beside the compiler.
        base._LOADED_LIBS["tvm_runtime_extra"] = load_lib_ctypes(
            "tvm", "tvm_runtime_extra", "RTLD_LOCAL", extra_lib_paths=libinfo.package_lib_paths()
        )
    accelerator = f"tvm_runtime_{runs_on}"
    if runs_on != "cpu" and accelerator not in base._LOADED_LIBS:
        base._LOADED_LIBS[accelerator] = load_lib_ctypes(
            "tvm", accelerator, "RTLD_LOCAL", extra_lib_paths=libinfo.package_lib_paths()
        )
    module: ModuleType = tvm
    return module
