"""Loops that pad, copy or add, kept short: LLVM takes seconds for hundreds of such lines in a row.

TVM vectorises a loop of up to 64 elements as one, and one annotation has all loops of a program
unrolled, also those that pad an image or add a bias. That makes them no faster, and one program in
twelve takes ten times as long to compile as the others (benchmarks/EXPERIMENTS.md, what a build
takes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

_TILED = "meta_schedule.tiling_structure"
"""Marks the blocks whose tiles the search has chosen: they stay as they are."""
_UNROLLED_STEPS = "pragma_auto_unroll_max_step"
_MOST_STEPS = 64
_MOST_LANES = 16


def with_short_plain_loops(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A scheduled function that computes the same, its plain loops split and hardly unrolled."""
    schedule = Schedule(IRModule({"main": function}), debug_mask="none")
    blocks = _innermost(schedule, schedule.get_sblock("root", func_name="main"))
    loops = [schedule.get_loops(block) for block in blocks]
    variables = [{schedule.get(loop).loop_var for loop in around} for around in loops]
    bodies = [schedule.get(block) for block in blocks]
    writers = Counter(region.source for body in bodies for region in body.writes)
    for number, body in enumerate(bodies):
        # Sums are begun and added to by two blocks, whose loops can no longer be vectorised anew.
        if _TILED in body.annotations or any(writers[each.source] > 1 for each in body.writes):
            continue
        others = set().union(*(found for index, found in enumerate(variables) if index != number))
        _shorten(schedule, loops[number], others)
    return schedule.mod["main"]


def _innermost(schedule: Schedule, block: SBlockRV) -> list[SBlockRV]:
    children = schedule.get_child_blocks(block)
    return [one for child in children for one in _innermost(schedule, child)] or [block]


def _shorten(schedule: Schedule, loops: Sequence[LoopRV], others: set[tirx.Var]) -> None:
    """Shorten a block's own loops: those around it that are not around another one, too."""
    found = [schedule.get(loop) for loop in loops]
    steps = max((int(loop.annotations.get(_UNROLLED_STEPS, 0)) for loop in found), default=0)
    own = [loop for loop, node in zip(loops, found, strict=True) if node.loop_var not in others]
    for position, loop in enumerate(own):
        node = schedule.get(loop)
        lanes = int(node.extent) if node.kind == tirx.ForKind.VECTORIZED else 0
        if lanes > _MOST_LANES and lanes % _MOST_LANES == 0:
            own[position], vector = schedule.split(loop, [None, _MOST_LANES])
            schedule.vectorize(vector)
    if steps > _MOST_STEPS and own:
        outermost = schedule.get(own[0])
        if _UNROLLED_STEPS in outermost.annotations:
            schedule.unannotate(own[0], _UNROLLED_STEPS)
        if outermost.kind != tirx.ForKind.VECTORIZED:
            schedule.annotate(own[0], _UNROLLED_STEPS, _MOST_STEPS)
