"""Which of the trained and compared candidates becomes the next step, if any."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.policies.gates import latency_gate
from orchestrator.policies.screen import Rejection
from orchestrator.states import Contender
from schemas.base import Schema
from schemas.config import PruneConfig
from schemas.table import Comparison
from schemas.work import Candidate

ACCURACY_GRAIN = 0.005
"""Accuracy added to every loss: less than half a point is beyond what a validation split tells."""


class Verdict(Schema):
    """The accepted candidate, if any, and the reason of each; which were not faster."""

    accepted: str | None
    reasons: dict[str, str]
    not_faster: tuple[str, ...] = ()


def judge(
    contenders: Sequence[tuple[Contender, Comparison]],
    parent_val_accuracy: float,
    config: PruneConfig,
) -> Verdict:
    """Accept the candidate with the most latency gained for the accuracy lost.

    The score is -ln(latency ratio) / (max(0, accuracy lost) + ACCURACY_GRAIN). Ties go to the
    lower latency ratio, then to the smaller ``candidate_id``.
    """
    passing: list[tuple[float, float, str]] = []
    told: dict[str, str] = {}
    reasons: dict[str, str] = {}
    not_faster: list[str] = []
    for contender, comparison in contenders:
        name = contender.candidate.candidate_id
        verdict = latency_gate(comparison, config.step_latency_ratio, config.confidence)
        measured = (
            f"{verdict.ratio:.4f} of the parent's latency, at most {verdict.bound:.4f} "
            f"with {config.confidence:.0%} confidence"
        )
        if not verdict.passed:
            reasons[name] = f"measured at {measured}: above {config.step_latency_ratio:g}"
            not_faster.append(name)
            continue
        gained = -math.log(verdict.ratio)
        lost = max(0.0, parent_val_accuracy - contender.network.val_accuracy)
        told[name] = f"{measured}; validation accuracy {contender.network.val_accuracy:.4f}"
        passing.append((-gained / (lost + ACCURACY_GRAIN), verdict.ratio, name))
    passing.sort()
    for rank, (score, _, name) in enumerate(passing):
        reasons[name] = (
            f"accepted: {told[name]}"
            if rank == 0
            else f"passed at {told[name]}, but gains {-score:.3g} per accuracy lost "
            f"against {-passing[0][0]:.3g} of the accepted one"
        )
    return Verdict(
        accepted=passing[0][2] if passing else None, reasons=reasons, not_faster=tuple(not_faster)
    )


def pointless(waiting: Sequence[Candidate], failed: Sequence[Rejection]) -> list[Rejection]:
    """Waiting candidates that cut all, and no less deep, that one did which lost its accuracy.

    Not those that would be trained for longer than that one was.
    """
    found = []
    for candidate in waiting:
        cut = dict(zip(candidate.groups, candidate.widths_after, strict=True))
        for rejection in failed:
            if candidate.long_training and not rejection.candidate.long_training:
                continue
            weaker = dict(
                zip(rejection.candidate.groups, rejection.candidate.widths_after, strict=True)
            )
            if all(cut.get(group, math.inf) <= width for group, width in weaker.items()):
                widths = ", ".join(map(str, weaker.values()))
                reason = (
                    f"not trained: the weaker cut to {widths} lost too much: {rejection.reason}"
                )
                found.append(Rejection(candidate=candidate, reason=reason))
                break
    return found
