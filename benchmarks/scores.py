"""How well programs were predicted to rank, for the benchmark of the cost model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

_PICKED = 8
_GUESSES = 101


@dataclass(frozen=True)
class Score:
    """How well programs of one task, or of several (medians), were predicted."""

    rank: float
    pick: float


def score(predicted: np.ndarray, latencies_ms: Sequence[float]) -> Score:
    """Of predicted speeds (larger is faster)."""
    rank = float(spearmanr(predicted, -np.array(latencies_ms)).statistic)
    first = np.argsort(-predicted, kind="stable")[:_PICKED]
    pick = min(latencies_ms[index] for index in first) / min(latencies_ms)
    return Score(0.0 if np.isnan(rank) else rank, pick)


def guessed(latencies_ms: Sequence[float]) -> Score:
    """What a guess is worth: the median of many."""
    random = np.random.default_rng(0)
    guesses = [random.random(len(latencies_ms)) for _ in range(_GUESSES)]
    picks = [score(guess, latencies_ms).pick for guess in guesses]
    return Score(0.0, statistics.median(picks))


def middle(scores: Sequence[Score]) -> Score:
    """Medians."""
    return Score(
        statistics.median(one.rank for one in scores), statistics.median(one.pick for one in scores)
    )
