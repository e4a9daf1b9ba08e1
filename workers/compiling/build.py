"""Building libraries: single programs, their untuned counterparts, and whole networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.driver import build as build_module
from tvm.ir import IRModule, load_json
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock
from tvm.target import Target

from workers.compiling.linking import Linker, linker_for
from workers.compiling.plain_loops import with_short_plain_loops
from workers.compiling.programs import ScheduleSpace

Arguments = list[tuple[str, list[int]]]

_SCHEDULED = "tirx.is_scheduled"


def build_program(scheduled: IRModule, target: Target, path: Path) -> Arguments:
    """Build a scheduled task as it runs inside a network, its weights packed beforehand.

    Returns the element type and shape of every argument.
    """
    module = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(scheduled)
    return _export(module, target, path)


def build_whole(module: IRModule, target: Target, path: Path) -> Arguments:
    """Build a task with the signature of its workload: weights are packed inside, if at all.

    Serves to compare a scheduled task with the untuned one on the same inputs.
    """
    return _export(module, target, path)


def build_network(
    module: IRModule,
    target: Target,
    programs: list[tuple[IRModule, str]],
    weights: dict[str, np.ndarray[Any, Any]],
    path: Path,
) -> None:
    """Build a whole network with the given program for each workload; weights become constants.

    ``module`` is that of a ``RelaxNetwork``, ``programs`` are workloads and traces, ``weights`` are
    by parameter name. The library's ``main`` takes one image batch and returns a tuple of outputs.
    """
    space = ScheduleSpace(target)
    database = ms.database.MemoryDatabase()
    for workload_module, trace in programs:
        workload = database.commit_workload(workload_module)
        database.commit_tuning_record(
            ms.database.TuningRecord(
                space.replay(workload_module, trace).trace, workload, [1.0], target
            )
        )
    with target, database, tvm.transform.PassContext(opt_level=3):
        module = tvm.ir.transform.Sequential(
            [
                relax.transform.MetaScheduleApplyDatabase(),
                relax.transform.SplitLayoutRewritePreproc(),
                relax.transform.BindParams("main", weights),
                relax.transform.FoldConstant(),
                # The constants themselves instead of items of tuples, which nothing uses then.
                relax.transform.CanonicalizeBindings(),
                relax.transform.DeadCodeElimination(),
            ]
        )(module)
    executable = tvm.compile(
        on_accelerator(_with_short_plain_loops(module, target), target),
        target=target,
        relax_pipeline=relax.get_pipeline("default_build"),
    )
    executable.export_library(str(path), fcompile=_linker(target))


def on_accelerator(module: IRModule, target: Target) -> IRModule:
    """The module with functions that nothing was scheduled in bound to an accelerator's threads."""
    if _is_cpu(target):
        return module
    from tvm.s_tir import dlight

    module = module.clone()  # the passes change it in place
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and _is_bound(function):
            module.update_func(variable, function.with_attr(_SCHEDULED, True))
    with target:
        return dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(module)


def _with_short_plain_loops(module: IRModule, target: Target) -> IRModule:
    """A network's scheduled functions as LLVM compiles them fast; unchanged for an accelerator.

    Programs are so alone, too: what is measured and checked is what is deployed.
    """
    if not _is_cpu(target):
        return module
    module = module.clone()
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and _SCHEDULED in (function.attrs or {}):
            module.update_func(variable, with_short_plain_loops(function))
    return module


def _is_cpu(target: Target) -> bool:
    return target.kind.name in ("llvm", "c")


def _is_bound(function: tirx.PrimFunc) -> bool:
    """Whether any of its loops runs over an accelerator's threads."""
    return "T.thread_binding(" in function.script()


def load_module(text: str) -> IRModule:
    """The module of a JSON text made by ``save_json``."""
    return load_json(text)


def _export(module: IRModule, target: Target, path: Path) -> Arguments:
    function = module["main"]
    module = module.clone()
    if _is_cpu(target):
        module.update_func(module.get_global_var("main"), with_short_plain_loops(function))
    module = on_accelerator(module, target)
    arguments = [
        (str(parameter.dtype), [int(extent) for extent in parameter.shape])
        for parameter in (function.params)
    ]
    build_module(module, target=target).export_library(str(path), fcompile=_linker(target))
    return arguments


def _linker(target: Target) -> Linker | None:
    cpu = target.host or target
    return linker_for({"mtriple": str(cpu.attrs.get("mtriple", ""))})
