"""Random convolutions with random programs: transplants compute what untuned programs compute.

Torch's export and the import into TVM cost as much for one convolution as for many, so that they
are drawn by the network: fifty convolutions side by side, and the same fifty, narrower.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from torch import Tensor, nn

from schemas.table import Program
from workers.compiling.network import relax_network
from workers.compiling.programs import ScheduleSpace, program_id, trace_text
from workers.compiling.tasks import build_table
from workers.compiling.workload import Workload
from workers.pruning.fold import exported_program
from workers.tuning.search import Search
from workers.tuning.worker import TuningWorker

CASES, NETWORK = 500, 50
VARIANTS = 4
DRAWS = 100
LEAST_SHARE = 0.8
NOT_RUN = ("did not build for the comparison", "the comparison with the untuned program failed")
SEED = 20_220_701


@dataclass(frozen=True)
class Axis:
    """What a convolution does along the height or the width."""

    kernel: int
    stride: int
    padding: int
    dilation: int


@dataclass(frozen=True)
class Convolution:
    """A convolution, and whether a relu follows it."""

    into: int
    out: int
    groups: int
    height: Axis
    width: Axis
    bias: bool
    relu: bool

    @property
    def kind(self) -> str:
        """As a task of the table calls it."""
        return "depthwise" if self.groups == self.into > 1 else "conv2d"

    def layer(self) -> nn.Module:
        height, width = self.height, self.width
        return nn.Conv2d(
            self.into,
            self.out,
            (height.kernel, width.kernel),
            stride=(height.stride, width.stride),
            padding=(height.padding, width.padding),
            dilation=(height.dilation, width.dilation),
            groups=self.groups,
            bias=self.bias,
        )


class SideBySide(nn.Module):
    """Convolutions that each read the first channels of one image."""

    def __init__(self, convolutions: list[Convolution]) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.layers = nn.ModuleList(convolution.layer() for convolution in convolutions)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for convolution, layer in zip(self.convolutions, self.layers, strict=True):
            output = layer(image[:, : convolution.into])
            outputs.append(torch.relu(output) if convolution.relu else output)
        return tuple(outputs)


@dataclass(frozen=True)
class Case:
    """A convolution and a narrower one, which reads an image of the same size."""

    before: Convolution
    after: Convolution


def drawn(random: Random, size: tuple[int, int]) -> Case:
    """A convolution of an image of this size, and what a random cut leaves of it."""
    height, width = _axis(random, size[0]), _axis(random, size[1])
    kind = random.choice(["plain", "plain", "grouped", "depthwise"])
    if kind == "plain":
        into, out, groups = random.randint(2, 32), random.randint(2, 48), 1
    elif kind == "grouped":
        groups = random.randint(2, 6)
        into, out = groups * random.randint(1, 6), groups * random.randint(2, 8)
    else:
        into = out = groups = random.randint(2, 48)
    bias, relu = random.random() < 0.7, random.random() < 0.7
    before = Convolution(into, out, groups, height, width, bias, relu)
    if kind == "depthwise":
        kept = random.randint(1, into - 1)
        return Case(before, replace(before, into=kept, out=kept, groups=kept))
    sides = random.choice(["output", "output", "input", "both"])
    if sides != "input":
        out = groups * random.randint(1, out // groups - 1)
    if sides != "output" and into > groups:
        into = groups * random.randint(1, into // groups - 1)
    if (into, out) == (before.into, before.out):  # one input channel in each group: cut the outputs
        out -= groups
    return Case(before, replace(before, into=into, out=out))


def _axis(random: Random, extent: int) -> Axis:
    """One that leaves an output of an image of this extent."""
    while True:
        axis = Axis(
            kernel=random.choice([1, 2, 3, 3, 3, 4, 5]),
            stride=random.choice([1, 1, 2, 3]),
            padding=random.randint(0, 3),
            dilation=random.choice([1, 1, 1, 2, 3]),
        )
        if axis.dilation * (axis.kernel - 1) < extent + 2 * axis.padding:
            return axis


def distinct_cases(random: Random, size: tuple[int, int]) -> list[Case]:
    cases: dict[Case, None] = {}
    while len(cases) < NETWORK:
        cases[drawn(random, size)] = None
    return list(cases)


def workloads(
    space: ScheduleSpace, convolutions: list[Convolution], size: tuple[int, int]
) -> list[Workload]:
    """The tasks of convolutions side by side; what the table says of them is checked."""
    network = SideBySide(convolutions).eval()
    image = torch.zeros(1, max(convolution.into for convolution in convolutions), *size)
    table = build_table(relax_network(exported_program(network, image), space.target), space.target)
    tasks = {subgraph.module: subgraph.task_id for subgraph in table.network.subgraphs}
    found = [table.workloads[tasks[f"layers.{i}"]] for i in range(len(convolutions))]
    for convolution, workload in zip(convolutions, found, strict=True):
        axes = workload.axes
        assert axes.output is not None and axes.reduction is not None, convolution
        assert axes.extents[axes.output] == convolution.out, convolution
        assert axes.extents[axes.reduction] == convolution.into // convolution.groups, convolution
        assert workload.task.kind == convolution.kind, convolution
    return found


def random_program(
    space: ScheduleSpace, search: Search, workload: Workload, random: Random
) -> Program:
    """A program drawn from the task's design space, as the search draws its first ones."""
    for _ in range(DRAWS):
        context = search.context(workload.task.task_id, workload.module, random.randrange(2**30))
        sample = random.choice(context.generate_design_space())
        schedule = space.process(workload.module, trace_text(sample))
        if schedule is not None:
            return program(workload, trace_text(schedule))
    raise AssertionError(f"none of {DRAWS} samples of {workload.task.name} applies")


def program(workload: Workload, trace: str, parent: Program | None = None) -> Program:
    return Program(
        program_id=program_id(workload.task.task_id, trace),
        task_id=workload.task.task_id,
        device_model="host",
        trace=trace,
        source="transplant" if parent else "search",
        parent=parent.program_id if parent else None,
        measurement=None,
    )


@pytest.mark.slow
def test_transplants_of_random_convolutions_compute_the_same(worker: TuningWorker) -> None:
    """No result is ever wrong, nothing raises, and most cases are transplanted, built and run."""
    random, space = Random(SEED), worker._tuner.space
    search = Search(space, population_size=8, generations=1)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for _ in range(CASES // NETWORK):
        size = random.randint(4, 12), random.randint(4, 12)
        cases = distinct_cases(random, size)
        before = workloads(space, [case.before for case in cases], size)
        after = workloads(space, [case.after for case in cases], size)
        suspects: dict[str, tuple[Workload, Program]] = {}
        for number, (case, dense, narrow) in enumerate(zip(cases, before, after, strict=True)):
            parent = random_program(space, search, dense, random)
            if number % 10 == 0:
                suspects[f"the random program of {case.before}"] = dense, parent
            found = space.transplant(narrow.module, narrow.axes, parent.trace, VARIANTS)
            if not found:
                outcomes["no transplant"] += 1
                continue
            moved = program(narrow, trace_text(random.choice(found)), parent)
            suspects[f"the transplant of {case}"] = narrow, moved
        checked = worker._trials.check(list(suspects.values()))
        for name, verdict in zip(suspects, checked, strict=True):
            reason = verdict.error.partition(":")[0]
            if reason and reason not in NOT_RUN:
                wrong.append(f"{name}: {verdict.error}")
            elif verdict.source == "transplant":
                outcomes[reason or "ran"] += 1
    share = outcomes["ran"] / CASES
    report = f"{share:.1%} of {CASES} transplanted, built and run: {dict(outcomes)}"
    print(report)
    assert not wrong, "\n".join([report, *wrong])
    assert share >= LEAST_SHARE, report
