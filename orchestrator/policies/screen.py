"""Which screened candidates are worth training."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.base import Schema
from schemas.config import PruneConfig
from schemas.work import Candidate, Screened


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
    """The candidates with the largest gain, those of different tasks first.

    A candidate counts as faster when the sum of its programs is at most ``step_latency_ratio`` of
    its parent's. Equal gains are told apart by ``candidate_id``, so that the choice is repeatable.
    """
    rejected: list[Rejection] = []
    faster: list[tuple[float, Candidate]] = []
    for candidate, found in screened:
        limit_ms = config.step_latency_ratio * found.parent_ms
        if found.refused:
            reason = f"refused: {found.refused}"
        elif found.candidate_ms > limit_ms:
            parent = f"the parent's {found.parent_ms:.4g} ms"
            above = (
                f"above {limit_ms:.4g} ms ({config.step_latency_ratio:g} of {parent})"
                if config.step_latency_ratio < 1.0
                else f"above {parent}"
            )
            reason = f"screened at {found.candidate_ms:.4g} ms, {above}"
        else:
            faster.append((found.parent_ms - found.candidate_ms, candidate))
            continue
        rejected.append(Rejection(candidate=candidate, reason=reason))
    faster.sort(key=lambda pair: (-pair[0], pair[1].candidate_id))
    best_of_task: dict[str, Candidate] = {}
    for _, candidate in faster:
        best_of_task.setdefault(candidate.task_id, candidate)
    firsts = list(best_of_task.values())
    ordered = [*firsts, *(candidate for _, candidate in faster if candidate not in firsts)]
    return ScreenDecision(
        chosen=tuple(ordered[: config.fine_tuned_per_round]),
        waiting=tuple(ordered[config.fine_tuned_per_round :]),
        rejected=tuple(rejected),
    )
