"""The latency gate on noisy devices: how often it is deceived, and how often it misses a gain.

The device is simulated on a virtual clock: multiplicative noise on every timing, and a pace that
wanders and drifts between timings, as a phone's does that warms up. On some, what else runs differs
from one occasion to the next, and costs one of the two networks more.
"""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fake_world
import numpy as np
import pytest

from orchestrator.policies.gates import latency_gate
from schemas.config import MeasureConfig, PruneConfig
from schemas.table import Comparison
from workers.measuring.gauge import Gauge
from workers.measuring.occasions import LEAST_OCCASIONS, OCCASIONS, compare_until_sure
from workers.measuring.pairs import take_pairs

TRIALS = 1000
HERE = Path("library.so")
PRUNE = PruneConfig(max_accuracy_drop=0.05)
MEASURE = MeasureConfig()


@dataclass
class NoisyDevice:
    """Times a reference of 10 ms and a candidate that takes ``1 - gain`` of it."""

    generator: np.random.Generator
    noise: float
    gain: float
    moods: float = 0.0
    log_pace: float = 0.0
    mood: float = 0.0

    def __post_init__(self) -> None:
        self.drift = self.generator.normal(0.0, 0.01)

    def time_ms(self, which: int) -> float:
        self.log_pace += self.drift + self.generator.normal(0.0, 0.005)
        own = math.exp(self.mood) * (1.0 - self.gain) if which else 1.0
        true_ms = 10.0 * math.exp(self.log_pace) * own
        return float(true_ms * max(0.05, 1.0 + self.noise * self.generator.normal()))

    def compare(self, key: str, *others: Any) -> Comparison:
        self.mood = self.generator.normal(0.0, self.moods) if self.moods else 0.0
        reference_ms, candidate_ms = take_pairs(
            self.time_ms, MEASURE.model_repeats, MEASURE.model_max_repeats, within_s=math.inf
        )
        return Comparison(
            reference_ms=tuple(reference_ms),
            candidate_ms=tuple(candidate_ms),
            reference=fake_world.measurement(10.0),
            candidate=fake_world.measurement(10.0),
        )


@functools.cache
def outcome(
    noise: float, gain: float, moods: float = 0.0, *, once: bool = False
) -> tuple[float, float]:
    """The share of trials in which the candidate is accepted, and the median number of pairs of all
    occasions."""
    accepted, pairs = 0, []
    for seed in range(TRIALS):
        device = NoisyDevice(np.random.default_rng(seed), noise, gain, moods)
        found = (
            device.compare("pair")
            if once
            else compare_until_sure(cast(Gauge, device), "pair", HERE, HERE, (1,))
        )
        accepted += latency_gate(found, PRUNE.step_latency_ratio, PRUNE.confidence).passed
        pairs.append(len(found.reference_ms))
    share, median = accepted / TRIALS, statistics.median(pairs)
    print(
        f"noise {noise:.0%}, {moods:.1%} between occasions, gain {gain:.0%}: "
        f"{share:.1%} accepted, {median:g} pairs{' of one occasion' if once else ''}"
    )
    return share, median


@pytest.mark.parametrize("noise", [0.05, 0.10, 0.25])
def test_a_candidate_without_a_gain_is_hardly_ever_accepted(noise: float) -> None:
    share, _ = outcome(noise, 0.0)
    assert share <= 0.05


@pytest.mark.parametrize("noise", [0.05, 0.10, 0.25])
def test_a_candidate_at_the_very_limit_is_hardly_ever_accepted(noise: float) -> None:
    """The gate's own limit is its hardest case: this is what its confidence speaks of."""
    share, _ = outcome(noise, 1.0 - PRUNE.step_latency_ratio)
    assert share <= 0.05


@pytest.mark.parametrize("gain", [0.0, 1.0 - PRUNE.step_latency_ratio])
@pytest.mark.parametrize("moods", [0.015, 0.075])
def test_occasions_that_differ_do_not_make_it_surer(moods: float, gain: float) -> None:
    """As on a machine whose caches two processes share: the pairs of an occasion agree."""
    share, _ = outcome(0.01, gain, moods)
    assert share <= 0.05


def test_a_gain_of_five_percent_is_found_at_five_percent_noise() -> None:
    share, _ = outcome(0.05, 0.05)
    assert share >= 0.9


def test_one_occasion_by_itself_would_be_deceived() -> None:
    share, _ = outcome(0.01, 0.0, 0.075, once=True)
    assert share > 0.3


def test_a_quiet_device_is_asked_for_the_least_number_of_pairs() -> None:
    share, pairs = outcome(0.01, 0.05)
    assert share == 1.0
    assert pairs == LEAST_OCCASIONS * MEASURE.model_repeats


def test_a_noisy_device_is_asked_for_more_pairs_but_not_for_ever() -> None:
    pairs = [outcome(noise, 0.0)[1] for noise in (0.01, 0.05, 0.25)]
    assert pairs == sorted(pairs)
    assert pairs[0] < pairs[1] < pairs[2] <= OCCASIONS * MEASURE.model_max_repeats


def test_the_least_number_is_taken_even_where_it_is_more_than_the_most() -> None:
    times = take_pairs(lambda which: 1.0 + which, least=5, most=3, within_s=math.inf)
    assert times == ([1.0] * 5, [2.0] * 5)


def test_a_slow_device_is_asked_for_no_more_pairs_once_time_is_up() -> None:
    device = NoisyDevice(np.random.default_rng(0), noise=0.25, gain=0.0)
    taken = []

    def time_ms(which: int) -> float:
        taken.append(which)
        return device.time_ms(which)

    for within_s, pairs in ((1.0, 4), (40.0, 8)):
        taken.clear()
        take_pairs(time_ms, 4, 60, within_s, clock=lambda: 2.5 * len(taken))
        assert len(taken) == 2 * pairs
