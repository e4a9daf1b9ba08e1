"""The two gates a step has to pass: latency beyond the noise, and accuracy."""

from __future__ import annotations

import math
import statistics

from schemas.base import Schema
from schemas.config import PruneConfig
from schemas.table import Comparison

_SLACK = 1e-9  # so that 0.98 - 0.01 counts as 0.97


class LatencyVerdict(Schema):
    """The paired latency ratio candidate / reference and its one-sided upper bound."""

    ratio: float
    bound: float
    passed: bool


def latency_gate(comparison: Comparison, ratio: float, confidence: float) -> LatencyVerdict:
    """Passed when the upper confidence bound of the mean log-ratio clears ``ratio``.

    The pairs are interleaved on one device, so that what slows the device down slows both. Where
    there were several occasions, the mean of each counts as one value: between them a ratio differs
    by more than the pairs of any one tell. Too few to tell (one) never pass.
    """
    occasions = comparison.log_ratios
    logs = list(occasions[0] if len(occasions) == 1 else map(statistics.fmean, occasions))
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return LatencyVerdict(ratio=math.exp(mean), bound=math.inf, passed=False)
    standard_error = statistics.stdev(logs) / math.sqrt(len(logs))
    bound = math.exp(mean + t_quantile(confidence, len(logs) - 1) * standard_error)
    return LatencyVerdict(ratio=math.exp(mean), bound=bound, passed=bound <= ratio)


def accuracy_refusal(
    val_accuracy: float, parent_val_accuracy: float, step_ratio: float, floor: float
) -> str:
    """Why the accuracy is too low for a step; empty when it is not."""
    least = least_accuracy(parent_val_accuracy, step_ratio, 0.0)
    if val_accuracy < floor - _SLACK:
        return f"validation accuracy {val_accuracy:.4f}, below the floor of {floor:.4f}"
    if val_accuracy < least - _SLACK:
        return (
            f"validation accuracy {val_accuracy:.4f}, below {least:.4f} "
            f"({step_ratio:g} of the parent's {parent_val_accuracy:.4f})"
        )
    return ""


def least_accuracy(parent_val_accuracy: float, step_ratio: float, floor: float) -> float:
    """What a step has to keep."""
    return max(step_ratio * parent_val_accuracy, floor)


def floor_of(dense_val_accuracy: float, prune: PruneConfig) -> float:
    """The least validation accuracy a network may have."""
    if prune.accuracy_floor is not None:
        return prune.accuracy_floor
    return max(0.0, dense_val_accuracy - (prune.max_accuracy_drop or 0.0))


def meets_floor(val_accuracy: float, floor: float) -> bool:
    """Whether a network may be the final one."""
    return val_accuracy >= floor - _SLACK


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, for probabilities of at least one half."""
    low, high = 0.0, 1.0
    while t_cumulative(high, degrees) < probability:
        high *= 2.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2.0
        if t_cumulative(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def t_cumulative(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0 and a whole number of degrees of freedom, by the finite series."""
    theta = math.atan(t / math.sqrt(degrees))
    cos, sin = math.cos(theta), math.sin(theta)
    odd = degrees % 2 == 1
    term, total = (cos if odd else 1.0), 0.0
    for power in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= cos * cos * (power + 1) / (power + 2)
    within = 2.0 / math.pi * (theta + sin * total) if odd else sin * total
    return 0.5 + within / 2.0
