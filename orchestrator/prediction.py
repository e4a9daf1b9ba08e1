"""How good a latency model's predictions were, by what was measured afterwards."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from schemas.record import StepRecord
from schemas.summary import PredictorSummary

_FEWEST_TO_RANK = 3


def predictor_of(steps: Sequence[StepRecord]) -> PredictorSummary | None:
    """Over the candidates that were predicted and then screened; None where there are none."""
    pairs = [
        (step.candidate.predicted_ms / step.parent_ms, step.screened_ms / step.parent_ms)
        for step in steps
        if step.candidate.predicted_ms is not None and step.parent_ms and step.screened_ms
    ]
    if not pairs:
        return None
    predicted, measured = zip(*pairs, strict=True)
    return PredictorSummary(
        candidates=len(pairs),
        median_error=statistics.median(abs(told / found - 1.0) for told, found in pairs),
        rank_correlation=_rank_correlation(predicted, measured),
    )


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None where there is nothing to rank."""
    if len(one) < _FEWEST_TO_RANK or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return statistics.correlation(_ranks(one), _ranks(other))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank."""
    return [
        sum(item < value for item in values) + (values.count(value) + 1) / 2 for value in values
    ]
