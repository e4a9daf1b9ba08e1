"""What other tasks that are searched with it have found and a task may try.

*Siblings* have the same loops, with something else fused behind them: a convolution with a residual
and one without. *Relatives* have the same loops of other extents: a 3x3 convolution with other
widths, or on another resolution. Their decisions are taken over as a transplant takes its
parent's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from schemas.table import Program
from workers.compiling.axes import ChannelAxes
from workers.compiling.workload import Workload
from workers.tuning.finalists import finalists

_FASTER = 1.05
"""Relatives and, at the end, siblings count that do so many times as much work in a time."""

_MOST_RELATIVES = 8
"""The most similar ones: each is adapted anew in every round, also where it has been tried."""


def siblings(
    workloads: Mapping[str, Workload], task_id: str, known: Mapping[str, Sequence[Program]]
) -> list[str]:
    """The siblings' fastest traces."""
    return [program.trace for program in _of_siblings(workloads, task_id, known)]


def faster_siblings(
    workloads: Mapping[str, Workload], task_id: str, known: Mapping[str, Sequence[Program]]
) -> list[str]:
    """Of the siblings' traces those that are faster than what the task itself has, in order."""
    own_ms = _least_ms(known[task_id])
    found = _of_siblings(workloads, task_id, known)
    found.sort(key=lambda program: program.latency_ms)
    return [program.trace for program in found if _FASTER * program.latency_ms < own_ms]


def faster_relatives(
    workloads: Mapping[str, Workload], task_id: str, known: Mapping[str, Sequence[Program]]
) -> list[str]:
    """The fastest traces of relatives that do more work in a time, the most similar ones first."""
    own = workloads[task_id]
    pace = own.task.macs / _least_ms(known[task_id])
    found = []
    for other, workload in workloads.items():
        best = finalists(known[other], 1)
        if best and _are_related(own.axes, workload.axes):
            if workload.task.macs / best[0].latency_ms > _FASTER * pace:
                found.append((_distance(own.axes, workload.axes), other, best[0].trace))
    return [trace for _, _, trace in sorted(found)[:_MOST_RELATIVES]]


def _of_siblings(
    workloads: Mapping[str, Workload], task_id: str, known: Mapping[str, Sequence[Program]]
) -> list[Program]:
    """The fastest program of each sibling.

    By themselves: what is known of them inside a network is not part of what a round may know.
    """
    own = workloads[task_id].axes
    if own.block is None:
        return []
    alike = [other for other in workloads if other != task_id and workloads[other].axes == own]
    return [program for other in alike for program in finalists(known[other], 1)]


def _least_ms(programs: Sequence[Program]) -> float:
    return min((program.latency_ms for program in programs), default=math.inf)


def _are_related(one: ChannelAxes, other: ChannelAxes) -> bool:
    """Whether the loops are the same but for the extents; those of a kernel are the same, too."""
    return (
        one != other
        and (one.block, one.output, one.reduction, one.reductions)
        == (other.block, other.output, other.reduction, other.reductions)
        and len(one.extents) == len(other.extents)
        and _kernel(one) == _kernel(other)
    )


def _kernel(axes: ChannelAxes) -> list[int]:
    return [axes.extents[loop] for loop in axes.reductions if loop != axes.reduction]


def _distance(one: ChannelAxes, other: ChannelAxes) -> float:
    """How far the extents are apart, in doublings."""
    pairs = zip(one.extents, other.extents, strict=True)
    return sum(abs(math.log2(own / given)) for own, given in pairs)
