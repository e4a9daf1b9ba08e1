"""Which candidates to try next: narrower networks for the slowest tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from orchestrator.states import RankedTask
from orchestrator.widths import GroupWidths, group_widths, joint_widths
from schemas.base import Schema, content_key
from schemas.config import PruneConfig
from schemas.network import ChannelGroup, Structure, Trained
from schemas.work import Candidate, Tuned


class Proposal(Schema):
    """Candidates, and why the tasks passed over on the way gave none."""

    candidates: tuple[Candidate, ...]
    passed_over: tuple[str, ...]


def rank_tasks(tuned: Tuned) -> tuple[RankedTask, ...]:
    """The tasks by program latency times subgraphs, slowest first."""
    names = {task.task_id: task.name for task in tuned.table.tasks}
    totals = {
        entry.task_id: entry.latency_ms * tuned.table.weight(entry.task_id)
        for entry in tuned.latencies
    }
    whole = sum(totals.values())
    return tuple(
        RankedTask(
            task_id=task_id,
            name=names.get(task_id, task_id),
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
    """Candidates for the slowest tasks that are not set aside and have an untried width."""
    candidates: dict[str, Candidate] = {}
    passed_over: list[str] = []
    proposed_from = 0
    for task in ranking:
        if proposed_from == config.tasks_per_round:
            break
        if task.task_id in set_aside:
            passed_over.append(f"{task.name}: set aside")
            continue
        behind = _groups_behind(tuned.table.modules(task.task_id), groups, config.exclude)
        if not behind:
            continue
        open_groups, refusals = _with_widths(behind, parent.structure, tuned, config)
        if not open_groups:
            passed_over.append(f"{task.name}: {'; '.join(refusals)}")
            continue
        made = [
            candidate
            for widths in spread(joint_widths(open_groups), config.widths_per_task)
            if (candidate := _candidate(task, parent, open_groups, widths)).candidate_id
            not in tried
            and candidate.candidate_id not in candidates
        ]
        if not made:
            passed_over.append(f"{task.name}: every width proposed for it has been tried")
            continue
        candidates.update((candidate.candidate_id, candidate) for candidate in made)
        proposed_from += 1
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


def _groups_behind(
    modules: Sequence[str], groups: Sequence[ChannelGroup], exclude: Sequence[str]
) -> list[ChannelGroup]:
    return [
        group
        for group in groups
        if group.prunable
        and any(producer in modules for producer in group.producers)
        and not any(fnmatchcase(name, pattern) for name in group.producers for pattern in exclude)
    ]


def _with_widths(
    groups: Sequence[ChannelGroup], structure: Structure, tuned: Tuned, config: PruneConfig
) -> tuple[list[GroupWidths], list[str]]:
    found = [
        group_widths(
            group,
            structure.widths.get(group.group_id, group.channels),
            tuned,
            config.min_width_fraction,
        )
        for group in groups
    ]
    return (
        [group for group in found if group.widths],
        [f"{group.group_id}: {group.reason}" for group in found if not group.widths],
    )


def _candidate(
    task: RankedTask, parent: Trained, groups: Sequence[GroupWidths], widths: Sequence[int]
) -> Candidate:
    changed = {group.group_id: width for group, width in zip(groups, widths, strict=True)}
    structure = parent.structure.with_widths(changed)
    return Candidate(
        candidate_id=content_key(parent.weights, structure.widths)[:16],
        task_id=task.task_id,
        task_name=task.name,
        parent=parent,
        structure=structure,
        groups=tuple(group.group_id for group in groups),
        widths_before=tuple(group.current for group in groups),
        widths_after=tuple(widths),
    )
