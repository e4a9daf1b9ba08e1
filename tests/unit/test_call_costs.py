"""What a call costs at other widths, after what was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.policies.call_costs import CallCosts
from orchestrator.policies.latency_model import Shape

NS_PER_MAC = 1e-6


def shape(outputs: int, inputs: int, pixels: int = 256) -> Shape:
    macs = 9.0 * inputs * outputs * pixels
    return Shape("conv2d", macs, outputs, pixels, 9.0 * inputs)


def rounded(one: Shape, lanes: int, constant_ms: float = 0.0) -> float:
    """A device that computes so many channels at once, whether they are used or not."""
    return (
        constant_ms + NS_PER_MAC * one.macs / one.outputs * math.ceil(one.outputs / lanes) * lanes
    )


SHAPES = [
    shape(outputs, inputs, pixels)
    for outputs in (3, 6, 8, 12, 16, 24, 32)
    for inputs in (4, 8, 16)
    for pixels in (64, 256)
]


@pytest.mark.parametrize("lanes", [4, 8])
def test_channels_that_vectors_hold_anyway_cost_nothing(lanes: int) -> None:
    costs = CallCosts({one: rounded(one, lanes) for one in SHAPES})
    full = shape(16, 16)
    assert costs.ratio(full, 0.5, 1.0) == pytest.approx(0.5, rel=1e-3)
    assert costs.ratio(full, lanes / 2 / 16, 1.0) == pytest.approx(lanes / 16, rel=1e-3)
    assert costs.ratio(full, 1.0, 0.5) == pytest.approx(0.5, rel=1e-3), "inputs fill no vectors"


def test_what_a_call_costs_at_least_stays() -> None:
    costs = CallCosts({one: rounded(one, 8, constant_ms=0.05) for one in SHAPES})
    small = shape(16, 4, 64)
    before, after = (rounded(one, 8, 0.05) for one in (small, shape(8, 4, 64)))
    assert costs.ratio(small, 0.5, 1.0) == pytest.approx(after / before, rel=1e-3)
    assert after / before > 0.75


def test_where_little_was_measured_the_multiplications_tell() -> None:
    few = {one: rounded(one, 8) for one in SHAPES[:3]}
    assert CallCosts(few).ratio(shape(8, 16), 0.5, 0.5) == pytest.approx(0.25)
    other = Shape("depthwise", 9.0 * 8 * 64, 8, 64, 9.0)
    costs = CallCosts({one: rounded(one, 8) for one in SHAPES})
    assert costs.ratio(other, 0.5, 0.5) == pytest.approx(0.5), "another kind of task"


def test_widths_that_fill_all_vectors_leave_the_widest_ones_to_be_expected() -> None:
    wide = [one for one in SHAPES if one.outputs % 8 == 0]
    costs = CallCosts({one: rounded(one, 1) for one in wide})
    assert costs.ratio(shape(8, 16), 0.5, 1.0) == pytest.approx(1.0, abs=0.01)
    assert costs.ratio(shape(16, 16), 0.5, 1.0) == pytest.approx(0.5, rel=0.01)


def test_narrower_is_never_taken_to_be_slower() -> None:
    random = np.random.default_rng(0)
    costs = CallCosts({one: float(random.uniform(0.01, 1.0)) for one in SHAPES})
    ratios = [costs.ratio(shape(32, 16), width / 32, 1.0) for width in range(1, 33)]
    assert ratios == sorted(ratios) and ratios[-1] == pytest.approx(1.0)
