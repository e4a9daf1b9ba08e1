"""Deep cuts are made in steps, none of which takes more than its share."""

from __future__ import annotations

import math

import pytest

from schemas.network import ChannelGroup
from workers.pruning.gradual import widths_on_the_way


def group(name: str, channels: int, divisor: int = 1, prunable: bool = True) -> ChannelGroup:
    return ChannelGroup(
        group_id=name,
        channels=channels,
        divisor=divisor,
        producers=(name,),
        consumers=(),
        prunable=prunable,
    )


FOUR = [group("a", 16), group("b", 32), group("c", 64), group("d", 128)]


def kept_on_average(before: dict[str, int], after: dict[str, int]) -> float:
    return math.exp(sum(math.log(after[name] / before[name]) for name in before) / len(before))


def test_a_cut_of_the_whole_network_in_half_is_made_in_even_steps() -> None:
    half = {"a": 8, "b": 16, "c": 32, "d": 64}
    steps = widths_on_the_way(FOUR, {}, half, 0.28)
    assert [step["d"] for step in steps] == [102, 81, 64]
    assert steps[-1] == half
    now = {g.group_id: g.channels for g in FOUR}
    for step in steps:
        assert kept_on_average(now, {**now, **step}) >= 0.72 - 0.05  # widths are whole numbers
        now |= step


def test_a_cut_of_one_group_of_several_is_made_at_once() -> None:
    assert widths_on_the_way(FOUR, {"a": 12}, {"a": 12, "b": 16}, 0.28) == [{"b": 16}]


def test_everything_may_be_pruned_at_once() -> None:
    assert widths_on_the_way(FOUR, {}, {"d": 1, "c": 1}, 1.0) == [{"c": 1, "d": 1}]


def test_a_training_that_changes_nothing_is_one_step() -> None:
    assert widths_on_the_way(FOUR, {"a": 8}, {"a": 8}, 0.28) == [{}]
    assert widths_on_the_way([group("a", 8, prunable=False)], {}, {}, 0.28) == [{}]


def test_every_width_on_the_way_is_a_multiple_of_the_groups_divisor() -> None:
    groups = [group("a", 64, divisor=8)]
    steps = widths_on_the_way(groups, {}, {"a": 16}, 0.28)
    assert len(steps) == 5 and steps[-1] == {"a": 16}
    widths = [step["a"] for step in steps if step]
    assert all(width % 8 == 0 for width in widths)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("most", [0.05, 0.28, 0.5, 0.9])
def test_the_last_step_ends_at_the_widths_asked_for(most: float) -> None:
    after = {"a": 3, "b": 32, "c": 17, "d": 1}
    now = {g.group_id: g.channels for g in FOUR}
    for step in widths_on_the_way(FOUR, {}, after, most):
        now |= step
    assert now == after
