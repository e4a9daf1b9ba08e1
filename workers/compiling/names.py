"""Blocks named by position, so that equal workloads of any network share their traces.

Reductions are legalised to blocks named after their argument, which is named after its place in the
network (``lv160_red``). A trace finds its blocks by name: without this it would only apply to the
workload of the very call it was found for.
"""

from __future__ import annotations

import json
from typing import Any

from tvm.ir import IRModule, load_json, save_json
from tvm.ir.transform import PassContext, module_pass
from tvm.tirx import PrimFunc


@module_pass(opt_level=0, name="NamedByPosition")  # type: ignore[untyped-decorator]
def named_by_position(module: IRModule, _: PassContext) -> IRModule:
    """The module with all that its functions name after an argument named ``input<i>_...``."""
    for variable, function in module.functions.items():
        if isinstance(function, PrimFunc):
            renamed = _renamed(function)
            if renamed is not None:
                module.update_func(variable, renamed)
    return module


def _renamed(function: PrimFunc) -> PrimFunc | None:
    """The function with its blocks and buffers renamed; None if none is named after an argument."""
    names = {f"{parameter.name}_": i for i, parameter in enumerate(function.params)}
    graph: dict[str, Any] = json.loads(save_json(function))
    changed = False
    for node in graph["nodes"]:
        if node["type"] != "ffi.String":
            continue
        # The longest: an argument's name may be the beginning of another's.
        prefix = max(filter(node["data"].startswith, names), key=len, default=None)
        if prefix is not None and node["data"] != prefix:
            node["data"] = f"input{names[prefix]}_{node['data'].removeprefix(prefix)}"
            changed = True
    return load_json(json.dumps(graph)) if changed else None
