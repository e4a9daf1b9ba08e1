"""Design spaces: what the search may choose of a workload's schedule.

Most workloads get TVM's own rules. The transforms around a convolution by tiles have one good
structure, which those rules do not find: a vector of channels of one tile stays in registers, its
loops unrolled. There the search chooses the vector factor alone.
"""

from __future__ import annotations

import tvm_ffi
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import SBlockRV

from workers.compiling.winograd import DATA, OUTPUT, ROWS, TILE

_WIDEST_VECTOR = 32
_POOLINGS = ("pool_max", "pool_avg", "adaptive_pool_max", "adaptive_pool_avg")


def space_generator(module: IRModule) -> ms.SpaceGenerator:
    """The design space of a workload."""
    names = block_names(module)
    if DATA in names:
        return ms.space_generator.ScheduleFn(_transform_data)
    if OUTPUT in names:
        return ms.space_generator.ScheduleFn(_transform_back)
    return ms.space_generator.create("post-order-apply")


def _as_it_is(schedule: Schedule, block: SBlockRV) -> list[Schedule]:
    return [schedule]


for _kind in ("cpu", "gpu"):
    for _pooling in _POOLINGS:
        # TVM marks poolings for a rule it has only for some targets, and warns at each search that
        # it is missing. What the rules for the whole workload do with them is all there is to do.
        tvm_ffi.register_global_func(
            f"s_tir.meta_schedule.{_kind}.meta_schedule.{_pooling}", _as_it_is
        )


def block_names(module: IRModule) -> tuple[str, ...]:
    """Names of the workload's blocks, producers before consumers."""
    schedule = Schedule(module, debug_mask="none")
    root = schedule.get_sblock("root", func_name="main")
    return tuple(str(schedule.get(block).name_hint) for block in schedule.get_child_blocks(root))


def _transform_data(schedule: Schedule) -> None:
    rows, result = schedule.get_sblock(ROWS), schedule.get_sblock(DATA)
    vector = _channel_tiles(schedule, result)
    point, tile, channel = schedule.get_loops(result)
    span = int(schedule.get(schedule.get_loops(rows)[0]).extent)
    row, column = schedule.split(point, [span, span])
    outer, inner = schedule.split(channel, vector)
    schedule.reorder(tile, outer, row, column, inner)
    schedule.compute_at(rows, outer, preserve_unit_loops=True)
    schedule.compute_inline(schedule.get_sblock(TILE))
    _unroll_inside(schedule, result, 2)
    _unroll_inside(schedule, rows, 2)
    schedule.parallel(schedule.fuse(tile, outer))


def _transform_back(schedule: Schedule) -> None:
    rows, tile = schedule.get_sblock(ROWS), schedule.get_sblock(TILE)
    vector = _channel_tiles(schedule, rows)
    edge = int(schedule.get(schedule.get_loops(rows)[0]).extent)
    result = schedule.get_sblock(OUTPUT)
    while consumers := schedule.get_consumers(result):  # what was fused: bias, relu, a residual
        schedule.compute_inline(result)
        (result,) = consumers
    batch, height, width, channel = schedule.get_loops(result)
    down, y = schedule.split(height, [None, edge])
    across, x = schedule.split(width, [None, edge])
    outer, inner = schedule.split(channel, vector)
    schedule.reorder(batch, down, across, outer, y, x, inner)
    schedule.compute_at(tile, outer, preserve_unit_loops=True)
    schedule.compute_at(rows, outer, preserve_unit_loops=True)
    for block in (result, tile, rows):
        _unroll_inside(schedule, block, 4)
    schedule.parallel(schedule.fuse(batch, down, across, outer))


def _channel_tiles(schedule: Schedule, block: SBlockRV) -> list[object]:
    channel = schedule.get_loops(block)[-1]
    return list(schedule.sample_perfect_tile(channel, 2, max_innermost_factor=_WIDEST_VECTOR))


def _unroll_inside(schedule: Schedule, block: SBlockRV, outside: int) -> None:
    """Unroll all of a block's loops but the first ``outside`` and the last, which is vectorised."""
    *unrolled, vectorised = schedule.get_loops(block)[outside:]
    for loop in unrolled:
        schedule.unroll(loop)
    schedule.vectorize(vectorised)
