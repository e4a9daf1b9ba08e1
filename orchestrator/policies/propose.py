"""Which candidates to try next: narrower networks for the slowest tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from orchestrator.states import RankedTask
from orchestrator.widths import GroupWidths, group_widths, joint_widths, least_width
from schemas.base import Schema, content_key
from schemas.config import PruneConfig
from schemas.network import ChannelGroup, Structure, Trained
from schemas.work import Candidate, Tuned


class Proposal(Schema):
    """Candidates, and why the tasks passed over on the way gave none."""

    candidates: tuple[Candidate, ...]
    passed_over: tuple[str, ...]


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


def propose(
    ranking: Sequence[RankedTask],
    tuned: Tuned,
    groups: Sequence[ChannelGroup],
    parent: Trained,
    set_aside: Collection[str],
    tried: Collection[str],
    config: PruneConfig,
) -> Proposal:
    """Candidates for the slowest tasks that are not set aside and have an untried width.

    Each task is cut by itself and, at the same depths, together with the others: where all of them
    can be cut, one round does the work of several.
    """
    fresh: dict[str, Candidate] = {}
    cuts_of: list[tuple[RankedTask, list[dict[str, int]]]] = []
    passed_over: list[str] = []
    for task in ranking:
        if len(cuts_of) == config.tasks_per_round:
            break
        if task.task_id in set_aside:
            passed_over.append(f"{task.name}: set aside")
            continue
        behind = _groups_behind(tuned.table.modules(task.task_id), groups)
        if not behind:
            continue
        open_groups, refusals = _with_widths(behind, parent.structure, tuned, config)
        if not open_groups:
            passed_over.append(f"{task.name}: {'; '.join(refusals)}")
            continue
        names = [group.group_id for group in open_groups]
        cuts = [
            dict(zip(names, widths, strict=True))
            for widths in spread(joint_widths(open_groups), config.widths_per_task)
        ]
        made = [_candidate(task, task.name, parent, groups, cut) for cut in cuts]
        new = {item.candidate_id: item for item in made if item.candidate_id not in tried}
        if not new.keys() - fresh.keys():
            passed_over.append(f"{task.name}: every width proposed for it has been tried")
            continue
        fresh.update(new)
        cuts_of.append((task, cuts))
    together = [
        item for item in _together(cuts_of, parent, groups) if item.candidate_id not in tried
    ]
    candidates = {item.candidate_id: item for item in (*together, *fresh.values())}
    return Proposal(candidates=tuple(candidates.values()), passed_over=tuple(passed_over))


def spread(cuts: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """The weakest cut and ``count - 1`` stronger ones, evenly spaced up to about half the width.

    ``cuts`` are multiples of a unit, so the cut at index i leaves about i + 1 units less than now;
    what is left at the last index is the least width.
    """
    if count <= 1 or len(cuts) <= 1:
        return list(cuts[:1])
    now = sum(cuts[0]) + (sum(cuts[0]) - sum(cuts[1]))
    chosen = [cuts[0]]
    for number in range(1, count):
        wanted = now - now * number // (2 * (count - 1))
        nearest = min(cuts, key=lambda cut: (abs(sum(cut) - wanted), -sum(cut)))
        if nearest not in chosen:
            chosen.append(nearest)
    return chosen


def _groups_behind(modules: Sequence[str], groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    return [
        group
        for group in groups
        if group.prunable and any(producer in modules for producer in group.producers)
    ]


def _with_widths(
    groups: Sequence[ChannelGroup], structure: Structure, tuned: Tuned, config: PruneConfig
) -> tuple[list[GroupWidths], list[str]]:
    found = [
        group_widths(
            group,
            structure.widths.get(group.group_id, group.channels),
            tuned,
            _least(group, config),
        )
        for group in groups
    ]
    return (
        [group for group in found if group.widths],
        [f"{group.group_id}: {group.reason}" for group in found if not group.widths],
    )


def _least(group: ChannelGroup, config: PruneConfig) -> int:
    """The least width that the configuration allows the group."""
    asked = (
        width
        for pattern, width in config.min_widths.items()
        if any(fnmatchcase(name, pattern) for name in group.producers)
    )
    return max(least_width(group.channels, config.min_width_fraction), *asked, 1)


def _together(
    cuts_of: Sequence[tuple[RankedTask, list[dict[str, int]]]],
    parent: Trained,
    groups: Sequence[ChannelGroup],
) -> list[Candidate]:
    """The cuts of all proposed tasks at once, the deepest first; none for a single task."""
    if len(cuts_of) < 2:
        return []
    slowest = cuts_of[0][0]
    name = f"{slowest.name} and {len(cuts_of) - 1} more"
    made = []
    for depth in reversed(range(max(len(cuts) for _, cuts in cuts_of))):
        joint: dict[str, int] = {}
        for _, cuts in cuts_of:
            for group, width in cuts[min(depth, len(cuts) - 1)].items():
                joint.setdefault(group, width)
        made.append(_candidate(slowest, name, parent, groups, joint))
    return made


def _candidate(
    task: RankedTask,
    name: str,
    parent: Trained,
    groups: Sequence[ChannelGroup],
    cut: Mapping[str, int],
) -> Candidate:
    dense = {group.group_id: group.channels for group in groups}
    before = parent.structure.widths
    structure = parent.structure.with_widths(dict(cut))
    return Candidate(
        candidate_id=content_key(parent.weights, structure.widths)[:16],
        task_id=task.task_id,
        task_name=name,
        parent=parent,
        structure=structure,
        groups=tuple(cut),
        widths_before=tuple(before.get(group, dense[group]) for group in cut),
        widths_after=tuple(cut.values()),
    )
