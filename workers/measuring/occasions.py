"""Two networks compared on several occasions, for a figure that is told and for a step's gate.

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
from workers.measuring.pairs import STANDARD_ERROR, standard_error

OCCASIONS = 7
"""The least of seven ratios is a lower bound of their median with 99 % confidence, by the sign
test; of fewer than six, not with 97 %, which is the default. They follow each other, so that is of
the minute in which they are taken: what lasts longer spoils them all."""


LEAST_OCCASIONS = 4
"""For a step: fewer tell too little of how far occasions are apart, and by chance agree."""


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


def compare_until_sure(
    gauge: Gauge, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
) -> Comparison:
    """``LEAST_OCCASIONS`` to ``OCCASIONS``, as their scatter asks for, as one comparison.

    Whether to go on depends on how far they are apart, never on which network is ahead, as for the
    pairs of one (``workers.measuring.pairs``). With so few it still spends a little: of candidates
    at the very limit of a gate of 97 % confidence up to 4.9 % pass (tests/unit/test_gate_noise.py).
    Arguments and errors are those of ``Gauge.compare``.
    """
    found: list[Comparison] = []
    means: list[float] = []
    while len(found) < LEAST_OCCASIONS or (
        len(found) < OCCASIONS and standard_error(means) > STANDARD_ERROR
    ):
        found.append(gauge.compare(f"{key}:{len(found)}", reference, candidate, input_shape))
        means.append(statistics.fmean(found[-1].log_ratios[0]))
    return Comparison(
        reference_ms=tuple(ms for one in found for ms in one.reference_ms),
        candidate_ms=tuple(ms for one in found for ms in one.candidate_ms),
        reference=together([one.reference for one in found]),
        candidate=together([one.candidate for one in found]),
        occasions=tuple(len(one.reference_ms) for one in found),
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
