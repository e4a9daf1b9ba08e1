"""The tasks of a network: which call sites share one workload, exactly.

A task is found twice, by TVM's structural equality (``extract_tasks``) and by our own sha256 of the
workload's canonical text, its shapes and the target. Both must agree on every call site; a network
on which they do not is refused with the names of what did not match.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm.ir import IRModule, save_json
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from schemas.table import NetworkTable, Subgraph, Task, TaskKind
from workers.compiling.axes import ChannelAxes, channel_axes, multiply_accumulates
from workers.compiling.network import RelaxNetwork
from workers.compiling.workload import Workload
from workers.errors import UserError


@dataclass(frozen=True)
class TaskTable:
    """The table of one network structure and the workloads behind it, by task id."""

    network: NetworkTable
    workloads: dict[str, Workload]


def build_table(network: RelaxNetwork, target: Target) -> TaskTable:
    """Group the call sites of ``network`` into tasks.

    Raises ``UserError`` when structural equality and our own hash disagree about any call site, or
    when a call site is not among TVM's extracted tasks.
    """
    extracted = ms.relax_integration.extract_tasks(network.module, target)
    modules = [task.dispatched[0] for task in extracted]
    by_equality: dict[int, list[str]] = {}
    workloads: dict[str, Workload] = {}
    subgraphs: list[Subgraph] = []
    ids_of: dict[str, str] = {}
    for site in network.sites:
        normalised = _as_main(network.module[site.function])
        position = _find_equal(modules, normalised)
        if position is None:
            raise UserError(
                "model.name",
                f"call site {site.function} ({site.module}) is not among the compiler's tasks",
                "report the network's name; until then choose another network",
            )
        by_equality.setdefault(position, []).append(site.function)
        if site.function not in ids_of:
            workload = _workload(extracted[position].task_name, modules[position], target)
            own = task_id(normalised, target)
            if own != workload.task.task_id:
                raise UserError(
                    "model.name",
                    f"call site {site.function} ({site.module}) equals task "
                    f"{extracted[position].task_name} structurally, but their texts differ",
                    "report the network's name; until then choose another network",
                )
            ids_of[site.function] = own
            workloads.setdefault(own, workload)
        subgraphs.append(
            Subgraph(
                index=site.index,
                task_id=ids_of[site.function],
                module=site.module,
                parameter=site.weight,
                output_shape=site.output_shape,
            )
        )
    for position, functions in by_equality.items():
        if len({ids_of[name] for name in functions}) != 1 or int(extracted[position].weight) != len(
            functions
        ):
            raise UserError(
                "model.name",
                f"task {extracted[position].task_name} has {int(extracted[position].weight)} call "
                f"sites by structural equality, but {len(functions)} were found: {functions}",
                "report the network's name; until then choose another network",
            )
    if len(by_equality) != len(workloads):
        by_text: dict[str, list[int]] = {}
        for position, functions in by_equality.items():
            by_text.setdefault(ids_of[functions[0]], []).append(position)
        confused = [
            by_equality[p] for positions in by_text.values() if positions[1:] for p in positions
        ]
        modules_of = {site.function: site.module for site in network.sites}
        names = "; ".join(
            ", ".join(f"{name} ({modules_of[name]})" for name in functions)
            for functions in confused
        )
        raise UserError(
            "model.name",
            f"{len(by_equality)} tasks by structural equality, {len(workloads)} by their text, "
            f"which is the same for: {names}",
            "report the network's name; until then choose another network",
        )
    table = NetworkTable(
        tasks=tuple(workload.task for workload in workloads.values()), subgraphs=tuple(subgraphs)
    )
    return TaskTable(table, workloads)


def task_id(module: IRModule, target: Target) -> str:
    """sha256 of a workload's text with its parameters renamed by position, and of the target."""
    return hashlib.sha256(f"{canonical_text(module)}\n{target}".encode()).hexdigest()


def canonical_text(module: IRModule) -> str:
    """The workload's script with the names of its arguments given by position.

    The importer names arguments, and sometimes blocks, after the call site; equal workloads differ
    in nothing else.
    """
    function = module["main"]
    text = str(module.script(show_meta=False))
    names = {parameter.name: position for position, parameter in enumerate(function.params)}
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}(?![0-9A-Za-z])", f"argument{names[name]}", text)
    return text


def _as_main(function: Any) -> IRModule:
    """The function alone in a module, named and marked as ``extract_tasks`` does it."""
    return ms.tune_context._normalize_mod(
        function.without_attr("global_symbol") if "global_symbol" in function.attrs else function
    )


def _find_equal(modules: list[IRModule], wanted: IRModule) -> int | None:
    function = _bare(wanted["main"])
    for position, module in enumerate(modules):
        if tvm_ffi.structural_equal(_bare(module["main"]), function):
            return position
    return None


def _bare(function: Any) -> Any:
    for attribute in ("global_symbol", "op_pattern", "tirx.noalias"):
        if function.attrs and attribute in function.attrs:
            function = function.without_attr(attribute)
    return function


def _workload(name: str, module: IRModule, target: Target) -> Workload:
    axes = channel_axes(module)
    text = str(save_json(module))
    return Workload(
        task=Task(
            task_id=task_id(module, target),
            name=name,
            kind=_kind(axes),
            workload=hashlib.sha256(text.encode()).hexdigest(),
            macs=multiply_accumulates(module),
        ),
        module=module,
        axes=axes,
    )


def _kind(axes: ChannelAxes) -> TaskKind:
    name = axes.block or ""
    if name.startswith("group_conv2d"):  # what the compiler calls depthwise convolutions too
        alone = axes.reduction is not None and axes.extents[axes.reduction] == 1
        return "depthwise" if alone else "conv2d"
    if name.startswith("conv2d"):
        return "conv2d"
    if name.startswith(("matmul", "dense")):
        return "dense"
    return "other"
