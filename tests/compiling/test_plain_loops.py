"""Loops that pad, copy or add are kept short for the compiler; what is computed stays the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.script import tirx as T

from workers.compiling.plain_loops import with_short_plain_loops

UNROLLED = "pragma_auto_unroll_max_step"
ROWS, CHANNELS = 8, 64


@T.prim_func(s_tir=True)
def weighted(image: T.Buffer((8, 64)), weight: T.Buffer((64,)), result: T.Buffer((8, 64))) -> None:
    copied = T.sblock_alloc_buffer((8, 64))
    product = T.sblock_alloc_buffer((8, 64))
    for row, channel in T.grid(8, 64):
        with T.sblock("copied"):
            at, of = T.axis.remap("SS", [row, channel])
            copied[at, of] = image[at, of] + T.float32(1)
    for row, channel in T.grid(8, 64):
        with T.sblock("product"):
            at, of = T.axis.remap("SS", [row, channel])
            T.sblock_attr({"meta_schedule.tiling_structure": "SSRSRS"})
            product[at, of] = copied[at, of] * weight[of]
    for row, channel in T.grid(8, 64):
        with T.sblock("result"):
            at, of = T.axis.remap("SS", [row, channel])
            result[at, of] = product[at, of] + weight[of]


def scheduled(*, together: bool) -> tirx.PrimFunc:
    """Each block's channels as one vector, everything unrolled; ``together`` in one row's loop."""
    schedule = Schedule(IRModule({"main": weighted}))
    result = schedule.get_sblock("result", func_name="main")
    others = [schedule.get_sblock(name, func_name="main") for name in ("product", "copied")]
    if together:
        row, _ = schedule.get_loops(result)
        for block in others:
            schedule.compute_at(block, row)
        schedule.annotate(row, UNROLLED, 512)
    for block in (result, *others):
        row, *_, channel = schedule.get_loops(block)
        schedule.vectorize(channel)
        if not together:
            schedule.annotate(row, UNROLLED, 512)
    return schedule.mod["main"]


def extents_and_steps(function: tirx.PrimFunc, block: str) -> tuple[list[int], list[int]]:
    schedule = Schedule(IRModule({"main": function}))
    loops: list[LoopRV] = schedule.get_loops(schedule.get_sblock(block, func_name="main"))
    found = [schedule.get(loop) for loop in loops]
    steps = [int(loop.annotations[UNROLLED]) for loop in found if UNROLLED in loop.annotations]
    return [int(loop.extent) for loop in found], steps


@pytest.mark.parametrize("block", ["copied", "result"])
def test_vectors_of_plain_loops_have_sixteen_elements(block: str) -> None:
    extents, steps = extents_and_steps(with_short_plain_loops(scheduled(together=False)), block)
    assert extents == [ROWS, CHANNELS // 16, 16] and steps == [64]


def test_tiles_stay_as_they_were_searched() -> None:
    before = scheduled(together=False)
    after = with_short_plain_loops(before)
    assert extents_and_steps(after, "product") == extents_and_steps(before, "product")
    assert extents_and_steps(after, "product") == ([ROWS, CHANNELS], [512])


def test_a_loop_that_tiles_are_in_stays_unrolled() -> None:
    after = with_short_plain_loops(scheduled(together=True))
    assert extents_and_steps(after, "product") == ([ROWS, CHANNELS], [512])
    assert extents_and_steps(after, "copied") == ([ROWS, CHANNELS // 16, 16], [512, 64])


@pytest.mark.parametrize("together", [True, False])
def test_what_is_computed_stays_the_same(together: bool) -> None:
    random = np.random.default_rng(0)
    image = random.random((ROWS, CHANNELS), dtype="float32")
    weight = random.random(CHANNELS, dtype="float32")
    function = with_short_plain_loops(scheduled(together=together))
    built = tvm.compile(function.with_attr("global_symbol", "main"), target="llvm")
    result = tvm.runtime.tensor(np.zeros_like(image))
    built["main"](tvm.runtime.tensor(image), tvm.runtime.tensor(weight), result)
    np.testing.assert_allclose(result.numpy(), (image + 1) * weight + weight, rtol=1e-6)
