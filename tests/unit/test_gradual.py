"""Deep cuts are made in steps, none of which takes more than its share."""

from __future__ import annotations

import math

import pytest

from schemas.network import ChannelGroup
from workers.pruning.gradual import steps_for, widths_on_the_way


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


def test_a_cut_of_the_whole_network_in_half_is_made_in_even_steps() -> None:
    half = {"a": 8, "b": 16, "c": 32, "d": 64}
    steps = widths_on_the_way(FOUR, {}, half, 3)
    assert [step["d"] for step in steps] == [102, 81, 64]
    assert [step["a"] for step in steps] == [13, 10, 8]
    assert steps[-1] == half


def test_only_groups_that_change_are_named() -> None:
    assert widths_on_the_way(FOUR, {"a": 12}, {"a": 12, "b": 16}, 1) == [{"b": 16}]
    assert widths_on_the_way(FOUR, {"a": 8}, {"a": 8}, 1) == [{}]
    assert widths_on_the_way([group("a", 8, prunable=False)], {}, {}, 1) == [{}]


def test_every_width_on_the_way_is_a_multiple_of_the_groups_divisor() -> None:
    steps = widths_on_the_way([group("a", 64, divisor=8)], {}, {"a": 16}, 5)
    assert len(steps) == 5
    widths = [step["a"] for step in steps if step]
    assert all(width % 8 == 0 for width in widths)
    assert widths == sorted(widths, reverse=True) and widths[-1] == 16


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_the_last_step_ends_at_the_widths_asked_for(steps: int) -> None:
    after = {"a": 3, "b": 32, "c": 17, "d": 1}
    now = {g.group_id: g.channels for g in FOUR}
    for step in widths_on_the_way(FOUR, {}, after, steps):
        now |= step
    assert now == after


def test_no_step_takes_more_of_the_multiplications_than_it_may() -> None:
    assert steps_for(1000, 551, 0.45) == 1
    assert steps_for(1000, 549, 0.45) == 2
    assert steps_for(1000, 10, 0.45) == math.ceil(math.log(100) / math.log(1 / 0.55))


def test_everything_may_be_pruned_at_once() -> None:
    assert steps_for(1000, 1, 1.0) == 1


def test_a_training_that_changes_nothing_is_one_step() -> None:
    assert steps_for(1000, 1000, 0.45) == 1
    assert steps_for(0, 0, 0.45) == 1
