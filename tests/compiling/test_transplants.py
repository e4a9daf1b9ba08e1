"""Transplants to other widths compute what the untuned program computes, on a real device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import tuning_world
from torch import Tensor, nn

from schemas.table import Program
from schemas.work import TuneWork
from workers.compiling.network import relax_network
from workers.compiling.programs import program_id, trace_text
from workers.compiling.tasks import build_table
from workers.compiling.trace import factors_of_loop
from workers.compiling.workload import Workload
from workers.pruning.fold import exported_program
from workers.tuning.bundle import Bundle
from workers.tuning.worker import TuningWorker

DENSE = (16, 32)
WIDTHS = {"output": [(16, 16), (16, 28)], "input": [(8, 32)], "both": [(12, 24)]}


class Plain(nn.Module):
    """A convolution with bias and relu."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, into, 1)
        self.conv = nn.Conv2d(into, out, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.conv(self.before(image)))


class Residual(Plain):
    """The same, with a sum before the relu."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.shortcut = nn.Conv2d(3, out, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.conv(self.before(image)) + self.shortcut(image))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuningWorker]:
    started = tuning_world.worker(tmp_path_factory.mktemp("run"), tuning_world.Table())
    yield started
    started.close()


def bundle_of(worker: TuningWorker, kind: type[Plain], widths: tuple[int, int]) -> Bundle:
    torch.manual_seed(0)
    program = exported_program(kind(*widths).eval(), torch.zeros(1, 3, 8, 8))
    target = worker._tuner.space.target
    relax = relax_network(program, target)
    table = build_table(relax, target)
    return Bundle(relax, table.network, table.workloads)


def conv_of(bundle: Bundle) -> Workload:
    (found,) = [s.task_id for s in bundle.table.subgraphs if s.module == "conv"]
    return bundle.workloads[found]


def searched(worker: TuningWorker, kind: type[Plain]) -> list[Program]:
    """A few programs of the dense layer, each measured."""
    bundle = bundle_of(worker, kind, DENSE)
    work = TuneWork(target="host", network=None, trials_per_task=2, modules=("conv",))
    worker._tuner.tune_bundle(work, bundle)
    programs = worker._tuner.stored(bundle)[conv_of(bundle).task.task_id]
    assert len(programs) == 2
    ran = [program for program in programs if program.measurement is not None]
    assert ran, [program.error for program in programs]
    return ran


@pytest.mark.parametrize("kind", [Plain, Residual])
def test_transplants_are_exact_and_keep_the_vector_factor(
    worker: TuningWorker, kind: type[Plain]
) -> None:
    parents = searched(worker, kind)
    suspects = []
    for side, widths in WIDTHS.items():
        for pair in widths:
            workload = conv_of(bundle_of(worker, kind, pair))
            found = [p for parent in parents for p in transplants_of(worker, workload, parent)]
            assert found, f"{side} {pair}: no transplant of any of {len(parents)} programs"
            suspects += [(workload, program) for program in found]
    for program in worker._trials.check(suspects):
        assert program.error == ""
        assert program.max_abs_error is not None and program.max_abs_error < 1e-4


def transplants_of(worker: TuningWorker, workload: Workload, parent: Program) -> list[Program]:
    """The parent's likeliest transplant to the workload; its tiles are checked."""
    axes = workload.axes
    found = []
    for schedule in worker._tuner.space.transplant(workload.module, axes, parent.trace, 1):
        text = trace_text(schedule)
        assert axes.output is not None and axes.reduction is not None
        for axis, before in ((axes.output, parent.channel_tiles), (axes.reduction, ())):
            tiles, extent = factors_of_loop(text, axes.block, axis), axes.extents[axis]
            assert math.prod(tiles) == extent
            if before and extent % before[-1] == 0:
                assert tiles[-1] == before[-1]
        found.append(
            Program(
                program_id=program_id(workload.task.task_id, text),
                task_id=workload.task.task_id,
                device_model=parent.device_model,
                trace=text,
                source="transplant",
                parent=parent.program_id,
                measurement=None,
            )
        )
    return found


def test_a_program_transplanted_to_its_own_width_is_itself(worker: TuningWorker) -> None:
    workload = conv_of(bundle_of(worker, Plain, DENSE))
    for parent in searched(worker, Plain):
        found = worker._tuner.space.transplant(workload.module, workload.axes, parent.trace, 4)
        texts = [trace_text(schedule) for schedule in found]
        assert [program_id(workload.task.task_id, text) for text in texts] == [parent.program_id]


def test_no_variant_of_a_transplant_is_there_twice(worker: TuningWorker) -> None:
    """Moving a block to a place where it cannot be computed gives what another variant is."""
    workload = conv_of(bundle_of(worker, Plain, (16, 16)))
    for parent in searched(worker, Plain):
        found = worker._tuner.space.transplant(workload.module, workload.axes, parent.trace, 12)
        names = [program_id(workload.task.task_id, trace_text(schedule)) for schedule in found]
        assert len(names) > 3 and len(set(names)) == len(names)


def test_a_transplant_to_a_prime_width_has_no_vectors_if_there_is_one(worker: TuningWorker) -> None:
    parents = searched(worker, Plain)
    workload = conv_of(bundle_of(worker, Plain, (16, 31)))
    for parent in parents:
        for schedule in worker._tuner.space.transplant(
            workload.module, workload.axes, parent.trace, 4
        ):
            tiles = factors_of_loop(trace_text(schedule), workload.axes.block, workload.axes.output)
            assert tiles[-1] == 1  # 31 is prime


def test_no_transplant_where_the_trace_does_not_apply(worker: TuningWorker) -> None:
    workload = conv_of(bundle_of(worker, Plain, (16, 16)))
    space, block = worker._tuner.space, workload.axes.block
    for parent in searched(worker, Plain):
        assert space.transplant(workload.module, workload.axes, parent.trace, 1)
        trace = parent.trace.replace(f'"{block}"', '"absent"')
        assert space.transplant(workload.module, workload.axes, trace, 1) == []
