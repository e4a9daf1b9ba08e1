"""Which candidates to try next: narrower networks for the slowest tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.policies.base import Proposal
from orchestrator.policies.candidates import candidate_of, groups_behind, open_groups
from orchestrator.states import RankedTask
from orchestrator.widths import joint_widths
from schemas.config import PruneConfig
from schemas.network import ChannelGroup, Trained
from schemas.work import Candidate, Tuned


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
        behind = groups_behind(task.task_id, tuned, groups, config)
        if not behind:
            continue
        found, refusals = open_groups(behind, parent.structure, tuned, config)
        if not found:
            passed_over.append(f"{task.name}: {'; '.join(refusals)}")
            continue
        names = [group.group_id for group in found]
        cuts = [
            dict(zip(names, widths, strict=True))
            for widths in spread(joint_widths(found), config.widths_per_task)
        ]
        made = [candidate_of(task.task_id, task.name, parent, groups, cut) for cut in cuts]
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
        made.append(candidate_of(slowest.task_id, name, parent, groups, joint))
    return made
