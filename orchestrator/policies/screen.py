"""Which screened candidates are worth training."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from schemas.base import Schema
from schemas.config import PruneConfig
from schemas.work import Candidate, Screened

_MOST_KEPT_ALONE = 0.95
"""Of the parent's programs: a cut for a single task is not worth a long training if it keeps more.
The latency gate hardly ever tells so little from noise. Measured: benchmarks/EXPERIMENTS.md, what
becomes of lost cuts."""
_LOSS_GRAIN = 0.1
"""Part of the largest expected loss that is added to each: estimates are no finer."""


class Rejection(Schema):
    """A candidate that goes no further, and why."""

    candidate: Candidate
    reason: str


class ScreenDecision(Schema):
    """What becomes of the screened candidates."""

    chosen: tuple[Candidate, ...]
    waiting: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]


def choose(screened: Sequence[tuple[Candidate, Screened]], config: PruneConfig) -> ScreenDecision:
    """The deepest cut of the whole network, then those with most gain for the loss expected.

    Where no loss is expected of them, those with the largest gain, of different tasks first. A
    candidate counts as faster when the sum of its programs is at most ``step_latency_ratio`` of its
    parent's; less is asked of a single task's that would be trained for long. Equals are told apart
    by ``candidate_id``, so that the choice is repeatable.
    """
    rejected: list[Rejection] = []
    faster: list[tuple[float, Candidate]] = []
    for candidate, found in screened:
        most = most_kept(candidate, config)
        limit_ms = most * found.parent_ms
        if found.refused:
            reason = f"refused: {found.refused}"
        elif found.candidate_ms > limit_ms:
            parent = f"the parent's {found.parent_ms:.4g} ms"
            above = (
                f"above {limit_ms:.4g} ms ({most:g} of {parent})"
                if most < 1.0
                else f"above {parent}"
            )
            reason = f"screened at {found.candidate_ms:.4g} ms, {above}"
        else:
            faster.append((math.log(found.parent_ms / found.candidate_ms), candidate))
            continue
        rejected.append(Rejection(candidate=candidate, reason=reason))
    faster.sort(key=lambda pair: (-pair[0], pair[1].candidate_id))
    ordered = _by_worth(faster) or _by_task(faster)
    return ScreenDecision(
        chosen=tuple(ordered[: config.fine_tuned_per_round]),
        waiting=tuple(ordered[config.fine_tuned_per_round :]),
        rejected=tuple(rejected),
    )


def most_kept(candidate: Candidate, config: PruneConfig) -> float:
    """The share of its parent's latency that a candidate may keep at most, to be trained."""
    is_further = candidate.trained_from is not None  # its first training was worth it
    if candidate.task_id and candidate.long_training and not is_further:
        return min(config.step_latency_ratio, _MOST_KEPT_ALONE)
    return config.step_latency_ratio


def _by_worth(faster: Sequence[tuple[float, Candidate]]) -> list[Candidate]:
    """The deepest cut of the whole network, then the others by gain over loss; empty where losses
    are not known."""
    losses = {item.candidate_id: item.expected_loss for _, item in faster}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    if len(known) < len(losses) or not faster:
        return []
    grain = _LOSS_GRAIN * max(known.values())
    whole = [item for _, item in faster if not item.task_id][:1]
    rest = [
        (-gain / max(known[item.candidate_id] + grain, sys.float_info.min), item.candidate_id, item)
        for gain, item in faster
        if item not in whole
    ]
    return [*whole, *(item for _, _, item in sorted(rest, key=lambda one: one[:2]))]


def _by_task(faster: Sequence[tuple[float, Candidate]]) -> list[Candidate]:
    best_of_task: dict[str, Candidate] = {}
    for _, candidate in faster:
        best_of_task.setdefault(candidate.task_id, candidate)
    firsts = list(best_of_task.values())
    return [*firsts, *(candidate for _, candidate in faster if candidate not in firsts)]
