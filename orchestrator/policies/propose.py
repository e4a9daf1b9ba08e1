"""Which candidates to try next: narrower networks for the slowest tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.policies.base import Proposal
from orchestrator.policies.candidates import candidate_of, groups_behind, is_within, open_groups
from orchestrator.states import RankedTask
from orchestrator.widths import joint_widths
from schemas.config import PruneConfig
from schemas.network import Block, ChannelGroup, Structure, Trained
from schemas.work import Candidate, Tuned


def propose(
    ranking: Sequence[RankedTask],
    tuned: Tuned,
    groups: Sequence[ChannelGroup],
    parent: Trained,
    set_aside: Collection[str],
    tried: Collection[str],
    config: PruneConfig,
    *,
    blocks: Sequence[Block] = (),
    missed: Sequence[Structure] = (),
    at_the_floor: bool = False,
) -> Proposal:
    """Candidates for the slowest tasks that are not set aside and have an untried width, or are in
    a block that can be taken out.

    ``blocks``: those that may be taken out. ``missed``: none is nowhere wider than one of these.
    ``at_the_floor``: the accuracy is used up. Besides all
    groups behind a task together each of them is cut by itself; widths may be finer than those
    that keep the programs' structure; and all are to be trained as long as the final network is.
    """
    fresh: dict[str, Candidate] = {}
    tasks = 0
    passed_over: list[str] = []
    for task in ranking:
        if tasks == config.tasks_per_round:
            break
        if task.task_id in set_aside:
            passed_over.append(f"{task.name}: set aside")
            continue
        behind = groups_behind(task.task_id, tuned, groups, config)
        modules = set(tuned.table.modules(task.task_id))
        around = [block for block in blocks if modules & set(block.layers)]
        if not behind and not around:
            continue
        found, refusals = open_groups(behind, parent.structure, tuned, config, finer=at_the_floor)
        alone = [[group] for group in found] if at_the_floor and len(found) > 1 else []
        cuts = [
            {group.group_id: width for group, width in zip(cut, widths, strict=True)}
            for cut in (found, *alone)
            if cut
            for widths in spread(joint_widths(cut), config.widths_per_task)
        ]
        cuts += [dict.fromkeys(block.groups, 0) for block in around]
        made = [
            candidate_of(task.task_id, task.name, parent, groups, cut, long_training=at_the_floor)
            for cut in cuts
        ]
        new = {
            item.candidate_id: item
            for item in made
            if item.candidate_id not in tried and not is_within(item.structure.widths, missed)
        }
        if not new.keys() - fresh.keys():
            had = "every width proposed for it has been tried, or a wider network was lost"
            why = "; ".join(refusals) if refusals and not found else had
            passed_over.append(f"{task.name}: {why}")
            continue
        fresh.update(new)
        tasks += 1
    return Proposal(candidates=tuple(fresh.values()), passed_over=tuple(passed_over))


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
