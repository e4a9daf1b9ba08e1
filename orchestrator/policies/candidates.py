"""What every policy builds its candidates from: ranked tasks, the groups behind them, cuts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

from orchestrator.states import RankedTask
from orchestrator.widths import GroupWidths, group_widths, least_width, tenths
from schemas.base import content_key
from schemas.config import PruneConfig
from schemas.network import ChannelGroup, Structure, Trained
from schemas.work import Candidate, Tuned


def rank_tasks(tuned: Tuned) -> tuple[RankedTask, ...]:
    """The tasks by the cost of a call times subgraphs, slowest first."""
    names = {task.task_id: task.name for task in tuned.table.tasks}
    calls = {entry.task_id: entry.cost_ms for entry in tuned.latencies}
    totals = {task_id: cost * tuned.table.weight(task_id) for task_id, cost in calls.items()}
    whole = sum(totals.values())
    return tuple(
        RankedTask(
            task_id=task_id,
            name=names.get(task_id, task_id),
            call_ms=calls[task_id],
            total_ms=total,
            share=total / whole if whole > 0 else 0.0,
        )
        for task_id, total in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    )


def groups_behind(
    task_id: str, tuned: Tuned, groups: Sequence[ChannelGroup], config: PruneConfig
) -> list[ChannelGroup]:
    """The prunable groups whose channels a task's subgraphs compute."""
    modules = tuned.table.modules(task_id)
    behind = [
        group
        for group in groups
        if group.prunable and any(producer in modules for producer in group.producers)
    ]
    return behind[:1] if "associated" in config.without else behind


def open_groups(
    groups: Sequence[ChannelGroup],
    structure: Structure,
    tuned: Tuned,
    config: PruneConfig,
    *,
    finer: bool = False,
) -> tuple[list[GroupWidths], list[str]]:
    """The groups that have a width left, with their widths; why the others have none.

    ``finer``: also widths between those that keep the programs' structure, where these are far
    apart.
    """
    widths_of = tenths if "structure" in config.without else partial(group_widths, finer=finer)
    found = [
        widths_of(
            group,
            structure.widths.get(group.group_id, group.channels),
            tuned,
            least_of(group, config),
        )
        for group in groups
    ]
    return (
        [group for group in found if group.widths],
        [f"{group.group_id}: {group.reason}" for group in found if not group.widths],
    )


def least_of(group: ChannelGroup, config: PruneConfig) -> int:
    """The least width that the configuration allows the group."""
    asked = (
        width
        for pattern, width in config.min_widths.items()
        if any(fnmatchcase(name, pattern) for name in group.producers)
    )
    return max(least_width(group.channels, config.min_width_fraction), *asked, 1)


def allowed_width(group: ChannelGroup, width: int, config: PruneConfig) -> int:
    """The least width from ``width`` on that the group and the configuration allow."""
    least = max(width, least_of(group, config))
    return min(group.channels, -(-least // group.divisor) * group.divisor)


def is_within(widths: Mapping[str, int], others: Sequence[Structure]) -> bool:
    """Whether a network of these widths is nowhere wider than one of the others."""
    return any(
        all(widths.get(group, math.inf) <= width for group, width in other.widths.items())
        for other in others
    )


def candidate_of(
    task_id: str,
    name: str,
    parent: Trained,
    groups: Sequence[ChannelGroup],
    cut: Mapping[str, int],
    *,
    long_training: bool = False,
    trained_from: Trained | None = None,
    trained_further: int = 0,
) -> Candidate:
    """The parent with the widths of ``cut``. ``task_id`` and ``name`` say what it was made for.

    ``trained_from``: the network of these widths whose training goes on, for so many times. What is
    trained for long is another candidate than the same widths trained shortly.
    """
    dense = {group.group_id: group.channels for group in groups}
    begins = (trained_from.weights, trained_further) if trained_from else (parent.weights,)
    longer = ("trained for long",) if long_training else ()
    before = parent.structure.widths
    structure = parent.structure.with_widths(dict(cut))
    return Candidate(
        candidate_id=content_key(*begins, structure.widths, *longer)[:16],
        task_id=task_id,
        task_name=name,
        parent=parent,
        structure=structure,
        groups=tuple(cut),
        widths_before=tuple(before.get(group, dense[group]) for group in cut),
        widths_after=tuple(cut.values()),
        long_training=long_training,
        trained_from=trained_from,
        trained_further=trained_further,
    )
