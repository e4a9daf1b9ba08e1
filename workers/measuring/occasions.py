"""Two networks compared on several occasions, for a figure that is told.

What else a machine does lasts for seconds or minutes and costs networks of different sizes
differently: within one comparison the pairs agree with each other, and the next one's ratio is
another. Measured: benchmarks/EXPERIMENTS.md, the same comparison again.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from schemas.table import Comparison, Measurement
from workers.measuring.gauge import Gauge

OCCASIONS = 7
"""The least of seven ratios is a lower bound of their median with 99 % confidence, by the sign
test; of fewer than six, not with 97 %, which is the default. They follow each other, so that is of
the minute in which they are taken: what lasts longer spoils them all."""


def compare_often(
    gauge: Gauge, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
) -> tuple[Comparison, ...]:
    """``OCCASIONS`` comparisons, for each of which the device loads both networks anew.

    Arguments and errors are those of ``Gauge.compare``; each occasion has a key of its own.
    """
    return tuple(
        gauge.compare(f"{key}:{occasion}", reference, candidate, input_shape)
        for occasion in range(OCCASIONS)
    )


def ratios_of(comparisons: Sequence[Comparison]) -> tuple[float, ...]:
    """Reference / candidate latency: the median of the pairs of each comparison."""
    return tuple(
        statistics.median(
            reference / candidate
            for reference, candidate in zip(found.reference_ms, found.candidate_ms, strict=True)
        )
        for found in comparisons
    )


def together(measurements: Sequence[Measurement]) -> Measurement:
    """One network's latency in each comparison, with what the first one says of the device."""
    medians = tuple(measurement.latency_ms for measurement in measurements)
    return measurements[0].model_copy(update={"run_ms": medians})
