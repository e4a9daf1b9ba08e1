"""Which loops of a workload run over channels, read from the workload itself.

The output-channel loop is the spatial loop that indexes the last dimension of what the reduction
block writes; the input-channel loop is the reduction loop that indexes the last dimension of the
data it reads. Layouts are channels-last throughout, so both hold for convolutions and dense layers
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.tirx.analysis import undefined_vars


@dataclass(frozen=True)
class ChannelAxes:
    """Positions among the loops of the block that does the work; None for a loop it lacks."""

    block: str | None
    output: int | None
    reduction: int | None
    extents: tuple[int, ...]
    reductions: tuple[int, ...]


def channel_axes(module: IRModule) -> ChannelAxes:
    """Find the block with the most work and its channel loops."""
    block = _main_block(module)
    if block is None:
        return ChannelAxes(None, None, None, (), ())
    variables = [iteration.var for iteration in block.iter_vars]
    kinds = [int(iteration.iter_type) for iteration in block.iter_vars]
    extents = tuple(int(iteration.dom.extent) for iteration in block.iter_vars)
    written = _position(variables, block.writes[0].region[-1].min)
    reduction = None
    for read in block.reads:
        for position in _positions(variables, read.region[-1].min):
            if kinds[position] == _REDUCTION and reduction is None:
                reduction = position
    reductions = tuple(i for i, kind in enumerate(kinds) if kind == _REDUCTION)
    return ChannelAxes(str(block.name_hint), written, reduction, extents, reductions)


def multiply_accumulates(module: IRModule) -> int:
    """Multiply-accumulates of the workload: the size of its largest reduction; 0 without one."""
    block = _main_block(module)
    if block is None or not any(int(i.iter_type) == _REDUCTION for i in block.iter_vars):
        return 0
    product = 1
    for iteration in block.iter_vars:
        product *= int(iteration.dom.extent)
    return product


_REDUCTION = 2  # tvm.tirx.IterVar.CommReduce


def _main_block(module: IRModule) -> Any | None:
    """The block with the largest iteration space; one with a reduction before one without.

    Of equals the last: those before it prepare its input.
    """
    schedule = Schedule(module, debug_mask="none")
    root = schedule.get_sblock("root", func_name="main")
    best: tuple[tuple[bool, int], Any] | None = None
    for reference in schedule.get_child_blocks(root):
        block = schedule.get(reference)
        size = 1
        for iteration in block.iter_vars:
            size *= int(iteration.dom.extent)
        reduces = any(int(i.iter_type) == _REDUCTION for i in block.iter_vars)
        if block.iter_vars and (best is None or (reduces, size) >= best[0]):
            best = ((reduces, size), block)
    return best[1] if best else None


def _position(variables: list[Any], expression: Any) -> int | None:
    return next(iter(_positions(variables, expression)), None)


def _positions(variables: list[Any], expression: Any) -> list[int]:
    """Positions of the variables that occur in ``expression``."""
    occurring = undefined_vars(expression)
    return [
        position
        for position, variable in enumerate(variables)
        if any(variable.same_as(other) for other in occurring)
    ]
