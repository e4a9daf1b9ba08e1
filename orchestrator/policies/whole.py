"""Cuts of the whole network: where to prune how much, so that most latency goes for least loss.

The first cuts keep the structure of the programs. At the floor, which is where a cut has been lost,
the widths of narrow layers that do are too far apart: those in between are tried, too. Which group
gives up its next unit is decided by the latency that goes with it, as the measured programs and a
fit of call costs tell, over the rise of the loss that is expected: a knapsack filled greedily,
after Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP, NeurIPS 2022), section 3.
How deep the cut may be is found out by halving, on a scale of ratios.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from orchestrator.policies.base import View
from orchestrator.policies.call_costs import CallCosts
from orchestrator.policies.candidates import candidate_of, groups_behind, is_within, open_groups
from orchestrator.policies.judge import ACCURACY_GRAIN
from orchestrator.policies.sites import Sites
from orchestrator.states import Decision
from orchestrator.widths import GroupWidths
from schemas.network import Block, ChannelGroup
from schemas.work import Candidate

NAME = "the whole network"
FIRST_SHARES = (0.5, 0.7)
"""Of the latency: what the first candidates are to keep."""
_AFTER_RECOVERY = 0.85
"""What the first candidate after a long training is to keep at most, where cuts were lost before:
deep ones would be lost again, and one that hardly pays is not worth as long a training."""
_LEAST_CUT = 0.9
"""Not worth as long a training: to keep more than this."""
_MOST_OF_A_GROUP = 0.5
_MOST_OF_THE_BLOCKS = 0.5
_EVENNESS = 2.0
"""An expected loss counts for more, the less of the dense width is kept, by this power. It is what
goes before the network is trained again: what a narrow group lost comes back less well. Measured:
benchmarks/EXPERIMENTS.md, even cuts."""
_A_BLOCK = 0.5
"""What a block that is taken out counts as keeping, in that: as one cut to half of its width. With
1, a cut took out six of eleven blocks of a MobileNetV2 at once, beside layers it left as wide as
they were, and lost a point (benchmarks/EXPERIMENTS.md, blocks taken out)."""
_NO_LOSS = 1e-12


def whole_cuts(view: View) -> list[Candidate]:
    """Candidates that cut all groups at once, none where the accuracy allows no such cut.

    Nor where nothing is known of the groups' sensitivities.
    """
    groups, current = view.groups, view.search.current
    dense = {group.group_id: group.channels for group in groups}
    if not view.sensitivities:
        return []
    lost = bool(_lost_whole_cuts(view.search.decisions))
    found, _ = open_groups(
        _cuttable(view), current.structure, view.programs, view.config, finer=lost
    )
    widths = view.widths
    sites = Sites(view.programs, groups, widths, CallCosts(view.samples), view.blocks)
    refused = _not_faster(view.search.decisions)
    found = [_without(group, refused) for group in found]
    blocks = [
        block for block in view.blocks if not all((name, 0) in refused for name in block.groups)
    ]
    blocks = [block for block in blocks if not _suspects(view).intersection(block.groups)]
    made: dict[str, Candidate] = {}
    for share in _shares(view):
        while share <= _LEAST_CUT:
            cut = _cut(sites, found, blocks, widths, dense, view, share, lost)
            candidate = candidate_of("", NAME, current, groups, cut, long_training=True)
            left = {name: width / widths[name] for name, width in cut.items()}
            kept = sites.total_ms(left) / sites.total_ms({})
            candidate = candidate.model_copy(update={"kept_share": kept})
            if kept <= _LEAST_CUT and candidate.candidate_id not in view.tried:
                made.setdefault(candidate.candidate_id, candidate)
                break
            share = math.sqrt(share)
    return list(made.values())


def _cuttable(view: View) -> list[ChannelGroup]:
    """The groups that can be pruned; for an ablation only the first one behind each task."""
    groups, config = view.groups, view.config
    if "associated" not in config.without:
        return [group for group in groups if group.prunable]
    behind = (groups_behind(task.task_id, view.programs, groups, config) for task in view.ranking)
    first = {group.group_id for found in behind for group in found}
    return [group for group in groups if group.group_id in first]


def needs_recovery(view: View) -> bool:
    """Whether accuracy is what the cuts lack, and steps since the last recovery cost some."""
    stepped = any(decision.accepted for decision in view.since_recovery)
    return stepped and bool(_lost_whole_cuts(view.since_recovery))


def _lost_whole_cuts(decisions: Sequence[Decision]) -> list[Decision]:
    """Cuts of the whole network that lost too much accuracy, and did not hold once they had been
    trained further."""
    held = [item.structure for item in decisions if item.accepted]
    return [
        item
        for item in decisions
        if item.kept_share and item.lost_accuracy and item.structure not in held
    ]


def _not_faster(decisions: Sequence[Decision]) -> set[tuple[str, int]]:
    """Groups with widths that made a refused candidate slower: all of them where it was compared,
    or else those whose own layers were slower, or did not run."""
    return {
        (group, decision.structure.widths[group])
        for decision in decisions
        if decision.not_faster
        for group in (decision.groups if decision.compare_key else decision.slower)
    }


def _suspects(view: View) -> set[str]:
    """The groups of blocks that went in a lost cut of the current network.

    They are the coarsest units, so no cut with one gets much weaker. Alone they are tried for a
    task.
    """
    return {name for decision in view.search.lost_cuts for name in decision.structure.gone}


def _without(group: GroupWidths, refused: set[tuple[str, int]]) -> GroupWidths:
    widths = tuple(width for width in group.widths if (group.group_id, width) not in refused)
    return group.model_copy(update={"widths": widths})


def _cut(
    sites: Sites,
    groups: Sequence[GroupWidths],
    blocks: Sequence[Block],
    now: Mapping[str, int],
    dense: Mapping[str, int],
    view: View,
    share: float,
    lost: bool,
) -> dict[str, int]:
    """Group -> new width, unit by unit until the calls take ``share`` of what they take now.

    Or until there is no unit left to take. No group gives more than half, but with its block; no
    more than half of the blocks go, but a single one. Nothing is taken that would lead into one of
    ``view.missed``. ``lost``: where a cut was, the last unit is only taken if that comes nearer to
    ``share``, or else too little would go.
    """
    before, losses, missed = view.search.current.structure.widths, view.losses, view.missed
    whole_ms = total_ms = sites.total_ms({})
    least_ms = share * whole_ms
    shares: dict[str, float] = {}
    left = {
        group.group_id: [w for w in group.widths if w >= _MOST_OF_A_GROUP * group.current]
        for group in groups
        if group.group_id in losses
    }
    known = [block for block in blocks if all(name in losses for name in block.groups)]
    while total_ms > least_ms:
        standing = [block for block in known if shares.get(block.groups[0]) != 0.0]
        best: tuple[float, dict[str, float], float] | None = None
        narrower = (
            ({name: widths[0] / now[name]}, widths[0] / dense[name])
            for name, widths in left.items()
            if widths
        )
        shallower = (
            (dict.fromkeys(block.groups, 0.0), _A_BLOCK)
            for block in standing
            if len(known) - len(standing) < max(1, math.floor(_MOST_OF_THE_BLOCKS * len(known)))
        )
        for change, kept in (*narrower, *shallower):
            if is_within({**before, **_in_channels({**shares, **change}, now)}, missed):
                continue
            gained_ms = sites.of_ms(change, shares) - sites.of_ms(change, {**shares, **change})
            risen = sum(
                losses[name].loss(1.0 - after) - losses[name].loss(1.0 - shares.get(name, 1.0))
                for name, after in change.items()
            )
            score = kept**_EVENNESS * gained_ms / max(risen, _NO_LOSS)
            if best is None or score > best[0]:
                best = (score, change, gained_ms)
        if best is None:
            break
        _, change, gained_ms = best
        nearer_without = total_ms * (total_ms - gained_ms) < least_ms**2
        if lost and nearer_without and total_ms <= _LEAST_CUT * whole_ms:
            break
        shares |= change
        total_ms -= gained_ms
        for name, part in change.items():
            taken = round(part * now[name])
            left[name] = [width for width in left.get(name, ()) if width < taken]
    return _in_channels(shares, now)


def _in_channels(shares: Mapping[str, float], now: Mapping[str, int]) -> dict[str, int]:
    return {name: round(part * now[name]) for name, part in shares.items()}


def _shares(view: View) -> tuple[float, ...]:
    """What the candidates are to keep of the latency: half as deep, on a scale of ratios, as the
    last cut that lost too much, and a quarter for when no such cut is faster.

    As deep as the last one where the network was trained for long since, and regained something.
    What was accepted since a cut was lost has come nearer to it, by as much as it took.
    """
    search = view.search
    lost = _lost_whole_cuts(search.decisions)
    depth: float | None = None
    recovered = False
    for number, decision in enumerate(search.decisions):
        if decision in lost and decision.kept_share:
            depth, recovered = decision.kept_share, number < search.recovered_after
        elif decision.accepted and decision.kept_share and depth is not None:
            depth = depth / decision.kept_share
    if depth is None or depth >= 1.0:
        return FIRST_SHARES
    if recovered and search.current.val_accuracy - search.floor >= ACCURACY_GRAIN:
        return (min(depth, _AFTER_RECOVERY),)
    return (math.sqrt(depth), math.sqrt(math.sqrt(depth)))
