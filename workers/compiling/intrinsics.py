"""TVM's compiler with the tensor intrinsics of one kind of target only.

``import tvm.s_tir.tensor_intrin`` parses every back end's intrinsics, which costs half a minute in
each process, and ``TuneContext`` imports it. Putting a package object of the same name and path
into ``sys.modules`` first lets the needed submodules be imported one by one. For each intrinsic
TVM looks at the stack with its source lines, which takes 0.3 s in a process that has torch, and
does without them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm.target import Target

_PACKAGE = "tvm.s_tir.tensor_intrin"


def load_intrinsics(target: Target) -> tuple[str, ...]:
    """Import the tensor intrinsics that ``target`` can use; return the modules' names."""
    if _PACKAGE not in sys.modules:
        import tvm.s_tir

        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"this TVM has no {_PACKAGE}: install the pinned apache-tvm")
        package = types.ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules[_PACKAGE] = package
        tvm.s_tir.tensor_intrin = package
    names = _intrinsics_of(target)
    with _stacks_without_sources():
        for name in names:
            importlib.import_module(f"{_PACKAGE}.{name}")
    return names


@contextmanager
def _stacks_without_sources() -> Iterator[None]:
    whole = inspect.stack
    inspect.stack = lambda context=0: whole(0)
    try:
        yield
    finally:
        inspect.stack = whole


def _intrinsics_of(target: Target) -> tuple[str, ...]:
    kind = target.kind.name
    if kind == "llvm":
        triple = str(target.attrs.get("mtriple", ""))
        if triple.startswith(("aarch64", "arm")):
            return ("arm_cpu",)
        if triple.startswith("riscv"):
            return ("riscv_cpu",)
        return ("x86",)
    return {"cuda": ("cuda",), "rocm": ("rocm",), "metal": ("metal",)}.get(kind, ())
