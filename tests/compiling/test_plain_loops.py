"""Loops that pad, copy or add are kept short for the compiler; what is computed stays the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.script import tirx as T

from workers.compiling.network import relax_network
from workers.compiling.plain_loops import with_short_plain_loops
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import build_table
from workers.pruning.fold import exported_program
from workers.tuning.cost_model import RecordModel
from workers.tuning.search import Search, target_of

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


class Kinds(torch.nn.Module):
    """Tasks of many kinds: dense, pointwise and depthwise, poolings, means, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 64, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.last = torch.nn.Linear(64, 64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.max_pool2d(torch.relu(self.first(image)), 2)
        features = torch.nn.functional.avg_pool2d(features, 3, 1, 1)
        features = torch.nn.functional.relu6(self.depthwise(features))
        features = features * torch.sigmoid(features.mean((2, 3), keepdim=True))
        return self.last(torch.softmax(features, dim=1).mean((2, 3)))


def test_programs_of_every_kind_can_be_shortened() -> None:
    target = target_of({"kind": "llvm", "num-cores": 2})
    image = torch.zeros(1, 3, 16, 16)
    network = Kinds().eval().requires_grad_(False)
    relax = relax_network(exported_program(network, image), target)
    search = Search(ScheduleSpace(target), 32, generations=1)
    untrained = RecordModel().fitted({}, seed=0)
    kinds = 0
    for workload in build_table(relax, target).workloads.values():
        found = search.propose(workload, [], 16, 0, untrained)
        kinds += 1
        for proposal in found:
            with_short_plain_loops(proposal.schedule.mod["main"])
    assert kinds >= 8
