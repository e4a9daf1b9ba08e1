"""A figure that is told comes from several comparisons, of which a bad moment spoils one."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fake_world
import pytest

from orchestrator.compare.finals import Finals
from orchestrator.speedup import lower_bound
from schemas.table import Comparison
from workers.measuring import gauge_server
from workers.measuring.gauge import Gauge
from workers.measuring.occasions import (
    OCCASIONS,
    compare_often,
    compare_until_sure,
    ratios_of,
    together,
)

HERE = Path("library.so")


def comparison(reference_ms: float, candidate_ms: float, pairs: int = 10) -> Comparison:
    return Comparison(
        reference_ms=(reference_ms,) * pairs,
        candidate_ms=(candidate_ms,) * pairs,
        reference=fake_world.measurement(reference_ms),
        candidate=fake_world.measurement(candidate_ms),
    )


class OneBadMoment:
    """A device on which the third comparison meets what slows the small network down."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def compare(self, key: str, *others: Any) -> Comparison:
        self.asked.append(key)
        is_bad = len(self.asked) == 3
        return comparison(10.0, 2.0 if is_bad else 1.0, pairs=60 if is_bad else 10)


def test_each_comparison_counts_once_however_many_pairs_it_took() -> None:
    gauge = OneBadMoment()
    found = compare_often(cast(Gauge, gauge), "pair", HERE, HERE, (1,))
    assert len(set(gauge.asked)) == OCCASIONS, "each is asked for, and recorded, by itself"
    ratios = ratios_of(found)
    assert ratios == (10.0, 10.0, 5.0, 10.0, 10.0, 10.0, 10.0)
    assert together([item.candidate for item in found]).latency_ms == 1.0


class Moods:
    """A device whose comparisons' ratios are these, one after the other."""

    def __init__(self, *ratios: float) -> None:
        self.ratios = iter(ratios)

    def compare(self, key: str, *others: Any) -> Comparison:
        return comparison(10.0, 10.0 * next(self.ratios), pairs=3)


def test_a_step_is_compared_until_the_occasions_tell_enough() -> None:
    for moods, taken in (((0.5, 0.51, 0.5, 0.49, 0.9), 4), ((0.9, 1.1) * 4, OCCASIONS)):
        found = compare_until_sure(cast(Gauge, Moods(*moods)), "pair", HERE, HERE, (1,))
        assert found.occasions == (3,) * taken
        assert len(found.reference_ms) == len(found.candidate_ms) == 3 * taken
        told = [ratios[0] for ratios in found.log_ratios]
        assert told == pytest.approx([math.log(mood) for mood in moods[:taken]])
        assert found.candidate.latency_ms == pytest.approx(
            statistics.median(10.0 * mood for mood in moods[:taken])
        )


def test_they_are_enough_for_a_lower_bound() -> None:
    ratios = [1.0 + 0.1 * number for number in range(OCCASIONS)]
    assert lower_bound(ratios, 0.97) == lower_bound(ratios, 0.99) == 1.0
    assert lower_bound(ratios[:5], 0.97) is None


def test_the_last_measurement_of_a_comparison_tells_both_ways() -> None:
    finals = Finals(
        key="libraries",
        beside_dense={"ours": (comparison(10.0, 2.0),), "fpgm": (comparison(10.0, 4.0),)},
        beside_ours={"fpgm": (comparison(2.0, 4.0), comparison(2.0, 5.0))},
    )
    assert finals.over_dense("fpgm") == (2.5,)
    assert finals.over_ours("fpgm") == pytest.approx((2.0, 2.5))
    assert finals.over_ours("ours") == ()
    assert (finals.latency_ms("dense"), finals.latency_ms("fpgm")) == (10.0, 4.0)


def test_each_comparison_loads_both_networks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a network lies in memory is part of what occasions differ by."""
    loaded: list[str] = []

    class Machine:
        def time_evaluator(self, *_: object, **__: object) -> Any:
            return lambda image: SimpleNamespace(mean=0.001)

    def network(path: str) -> Machine:
        kept = gauge_server._state.networks
        if path not in kept:
            loaded.append(path)
            kept[path] = Machine()
        return kept[path]

    monkeypatch.setattr(gauge_server._state, "networks", {})
    monkeypatch.setattr(gauge_server, "_network", network)
    monkeypatch.setattr(gauge_server, "_random_image", lambda *_: None)
    request = {"reference": "a", "candidate": "b", "min_repeat_ms": 1}
    for _ in range(2):
        gauge_server._pair({**request, "least": 1, "most": 1, "within_s": 1.0})
    assert loaded == ["a", "b", "a", "b"]
