"""What a task may take over from the network's other tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import fake_world
import pytest

from schemas.table import Program, Task
from workers.compiling.axes import ChannelAxes
from workers.compiling.workload import Workload
from workers.tuning.relatives import faster_relatives, faster_siblings, siblings

CONV = ChannelAxes("conv2d_nhwc", 3, 6, (1, 32, 32, 8, 3, 3, 8), (4, 5, 6))
"""Batch, height, width, output channels, kernel's height and width, input channels."""


BOTH = ["alike 1.0", "slower 1.5"]


def workload(name: str, axes: ChannelAxes = CONV) -> Workload:
    macs = 1
    for extent in axes.extents:
        macs *= extent
    task = Task(task_id=name, name=name, kind="conv2d", workload="", macs=macs)
    return Workload(task, cast(Any, None), axes)


def extents(**changes: int) -> ChannelAxes:
    names = ("batch", "height", "width", "output", "kernel_height", "kernel_width", "input")
    values = dict(zip(names, CONV.extents, strict=True)) | changes
    return replace(CONV, extents=tuple(values[name] for name in names))


def programs(task_id: str, *latencies_ms: float | None) -> list[Program]:
    return [
        Program(
            program_id=f"{task_id}{number}",
            task_id=task_id,
            device_model="m",
            trace=f"{task_id} {latency_ms}",
            source="search",
            measurement=None if latency_ms is None else fake_world.measurement(latency_ms),
        )
        for number, latency_ms in enumerate(latencies_ms)
    ]


def test_siblings_do_the_same_work_with_something_else_behind_it() -> None:
    own, alike = workload("own"), workload("alike")
    workloads = {"own": own, "alike": alike, "wider": workload("wider", extents(output=16))}
    known = {name: programs(name, 2.0, 1.0, None) for name in workloads}
    assert siblings(workloads, "own", known) == ["alike 1.0"]
    assert siblings(workloads, "wider", known) == []


def test_tasks_without_a_reduction_have_no_siblings() -> None:
    axes = ChannelAxes(None, None, None, (), ())
    workloads = {"own": workload("own", axes), "other": workload("other", axes)}
    known = {name: programs(name, 1.0) for name in workloads}
    assert siblings(workloads, "own", known) == faster_relatives(workloads, "own", known) == []


@pytest.mark.parametrize(
    ("own_ms", "expected"), [((2.0,), BOTH), ((1.2,), BOTH[:1]), ((1.04,), []), ((), BOTH)]
)
def test_at_the_end_siblings_count_that_are_faster(
    own_ms: tuple[float, ...], expected: list[str]
) -> None:
    workloads = {name: workload(name) for name in ("own", "slower", "alike")}
    known = {
        "own": programs("own", *own_ms),
        "slower": programs("slower", 1.5),
        "alike": programs("alike", 1.0),
    }
    assert faster_siblings(workloads, "own", known) == expected


def test_relatives_are_taken_that_do_more_work_in_a_time_the_most_similar_first() -> None:
    workloads = {
        "own": workload("own"),
        "far": workload("far", extents(output=32, height=8, width=8)),
        "near": workload("near", extents(output=16)),
        "slow": workload("slow", extents(input=16)),
        "failed": workload("failed", extents(input=32)),
        "pointwise": workload("pointwise", extents(kernel_height=1, kernel_width=1)),
        "sibling": workload("sibling"),
        "other": workload("other", replace(CONV, block="matmul")),
    }
    known = {
        "own": programs("own", 1.0),
        "far": programs("far", 0.1),
        "near": programs("near", 1.9),  # of twice the work
        "slow": programs("slow", 2.1),
        "failed": programs("failed", None),
        "pointwise": programs("pointwise", 0.01),
        "sibling": programs("sibling", 0.1),
        "other": programs("other", 0.1),
    }
    assert faster_relatives(workloads, "own", known) == ["near 1.9", "far 0.1"]
    nothing_yet = {**known, "own": []}
    assert "slow 2.1" in faster_relatives(workloads, "own", nothing_yet)
