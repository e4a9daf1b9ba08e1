"""Which candidates to try next: narrower networks for the slowest tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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

    ``blocks``: those that may be taken out. ``missed``: no candidate lies within one of these.
    ``at_the_floor``: the accuracy is used up. Besides all groups behind a task together each of
    them is cut by itself; widths may be finer than those that keep the programs' structure, and
    where some were tried, others are; and all are to be trained as long as the final network is.
    """

    def made_of(task: RankedTask, cut: Mapping[str, int]) -> Candidate:
        return candidate_of(
            task.task_id, task.name, parent, groups, cut, long_training=at_the_floor
        )

    def is_new(item: Candidate) -> bool:
        return item.candidate_id not in tried and not is_within(item.structure.widths, missed)

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
        made = [made_of(task, dict.fromkeys(block.groups, 0)) for block in around]
        for together in (found, *alone):
            names = [group.group_id for group in together]
            weakest_first = [
                made_of(task, dict(zip(names, widths, strict=True)))
                for widths in (joint_widths(together) if together else ())
            ]
            if at_the_floor:  # each depth is tried in the end
                weakest_first = [item for item in weakest_first if is_new(item)]
            now = sum(group.current for group in together)
            made += spread(weakest_first, config.widths_per_task, now)
        new = {item.candidate_id: item for item in made if is_new(item)}
        if not new.keys() - fresh.keys():
            had = "every width proposed for it has been tried, or a wider network was lost"
            why = "; ".join(refusals) if refusals and not found else had
            passed_over.append(f"{task.name}: {why}")
            continue
        fresh.update(new)
        tasks += 1
    return Proposal(candidates=tuple(fresh.values()), passed_over=tuple(passed_over))


def spread(cuts: Sequence[Candidate], count: int, now: int) -> list[Candidate]:
    """The weakest of the cuts and ``count - 1`` stronger ones, evenly spaced up to about half of
    the width, which is ``now`` over all groups. ``cuts``: weakest first."""
    if count <= 1 or len(cuts) <= 1:
        return list(cuts[:1])
    chosen = [cuts[0]]
    for number in range(1, count):
        wanted = now - now * number // (2 * (count - 1))
        nearest = min(cuts, key=lambda cut: (abs(_width(cut) - wanted), -_width(cut)))
        if nearest not in chosen:
            chosen.append(nearest)
    return chosen


def _width(cut: Candidate) -> int:
    return sum(cut.widths_after)
