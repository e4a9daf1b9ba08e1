"""Structure-preserving widths are whole multiples of every vector factor."""

from __future__ import annotations

import itertools
import math

import fake_world
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.widths import (
    GroupWidths,
    _units,
    group_widths,
    joint_widths,
    least_width,
    multiples_between,
    vector_factors,
)
from schemas.network import ChannelGroup, Structure
from schemas.work import Tuned

factors = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 15, 16, 24, 32])


def world(tiles: dict[str, tuple[int, ...]], lost: str = "") -> Tuned:
    """The fake network's programs with these channel tiles; one task may have none that ran."""
    whole = fake_world.tuned(Structure(), "host")
    names = {subgraph.task_id: str(subgraph.module) for subgraph in whole.table.subgraphs}
    entries = []
    for entry in whole.latencies:
        name = names[entry.task_id]
        program_id = None if name == lost else entry.program_id
        changed = {"channel_tiles": tiles.get(name, ()), "program_id": program_id}
        entries.append(entry.model_copy(update=changed))
    return whole.model_copy(update={"latencies": tuple(entries)})


def group(channels: int, divisor: int = 1) -> ChannelGroup:
    return ChannelGroup(
        group_id="stem",
        channels=channels,
        producers=("stem", "flat"),
        consumers=("fragile", "deep"),
        divisor=divisor,
    )


@given(
    first=factors,
    second=factors,
    divisor=st.integers(1, 4),
    channels=st.integers(1, 512),
    cut=st.integers(0, 511),
    fraction=st.floats(0.01, 1.0),
)
def test_every_width_keeps_every_vector_factor(
    first: int, second: int, divisor: int, channels: int, cut: int, fraction: float
) -> None:
    current = max(1, channels - cut)
    tuned = world({"stem": (3, 1, first), "flat": (1, second), "fragile": (1, 7)})
    least = least_width(channels, fraction)
    found = group_widths(group(channels, divisor), current, tuned, least)
    kept = first, second
    if found.unit % first or found.unit % second:  # the last resort, where those leave no width
        strict = math.lcm(first, second, divisor)
        assert not multiples_between(strict, max(strict, least), current)
        kept = math.gcd(first, found.unit), math.gcd(second, found.unit)
        assert first // kept[0] in (1, 2, 4) and second // kept[1] in (1, 2, 4)
    assert found.unit % divisor == 0
    for width in found.widths:
        assert isinstance(width, int)
        assert width % kept[0] == width % kept[1] == width % divisor == 0
        assert width < current
        assert width >= fraction * channels - 1e-6 and width >= found.unit
    assert list(found.widths) == sorted(found.widths, reverse=True)
    assert bool(found.widths) != bool(found.reason)


def test_the_unit_is_the_least_common_multiple_of_the_producers_alone() -> None:
    tuned = world({"stem": (2, 4, 12), "flat": (32, 3, 8), "fragile": (1, 7)})
    assert vector_factors(group(96), tuned) == (12, 8)
    found = group_widths(group(96), 96, tuned, 10)
    assert (found.unit, found.widths) == (24, (72, 48, 24))


def test_the_least_width_is_exact() -> None:
    assert least_width(30, 0.1) == 3
    assert least_width(31, 0.1) == 4
    assert least_width(10, 0.001) == 1


def test_a_task_without_a_program_gives_no_width() -> None:
    tiles = {"stem": (2, 16), "flat": (2, 16)}
    for lost, role in (("flat", "computes"), ("deep", "reads")):
        found = group_widths(group(64), 64, world(tiles, lost), 7)
        assert found.widths == ()
        assert found.reason == f"no program ran of the task of {lost}, which {role} the channels"
    stranger = group(64).model_copy(update={"consumers": ("elsewhere",)})
    found = group_widths(stranger, 64, world(tiles), 7)
    assert "elsewhere, which reads the channels, is no task" in found.reason


def test_a_program_that_does_not_tile_asks_for_nothing() -> None:
    assert group_widths(group(8), 8, world({}), 4).widths == (7, 6, 5, 4)


def test_a_program_that_does_not_vectorise_keeps_its_innermost_loop() -> None:
    found = group_widths(group(64), 64, world({"stem": (2, 1, 16, 1), "flat": (4, 8)}), 7)
    assert (found.unit, found.widths) == (16, (48, 32, 16))


def test_a_vector_factor_as_wide_as_the_layer_is_halved_as_a_last_resort() -> None:
    found = group_widths(group(16), 16, world({"stem": (1, 16)}), 2)
    assert (found.unit, found.widths) == (8, (8,))


def test_the_vector_factors_of_programs_nearly_as_fast_come_before_halves() -> None:
    tuned = world({"stem": (1, 24)})
    entries = [
        entry.model_copy(update={"vector_factors": (24, 4)}) if entry.channel_tiles else entry
        for entry in tuned.latencies
    ]
    tuned = tuned.model_copy(update={"latencies": tuple(entries)})
    found = group_widths(group(24), 24, tuned, 3)
    assert (found.unit, found.widths) == (4, (20, 16, 12, 8, 4))


def test_an_odd_vector_factor_as_wide_as_the_layer_leaves_no_width() -> None:
    found = group_widths(group(15), 15, world({"stem": (1, 15)}), 2)
    assert found.widths == () and found.reason.startswith("no multiple of 15 from")


widths = st.builds(
    lambda name, unit, units, least: GroupWidths(
        group_id=name,
        current=unit * units,
        unit=unit,
        widths=multiples_between(unit, unit * min(least, units - 1), unit * units),
    ),
    st.text("ab", min_size=1, max_size=3),
    st.integers(1, 32),
    st.integers(2, 20),
    st.integers(1, 20),
)


@given(st.lists(widths, min_size=1, max_size=4))
def test_joint_widths_are_widths_of_every_group(groups: list[GroupWidths]) -> None:
    cuts = joint_widths(groups)
    assert cuts
    for cut in cuts:
        assert all(width in one.widths for width, one in zip(cut, groups, strict=True))
    assert len(set(cuts)) == len(cuts)
    assert cuts == sorted(cuts, key=max, reverse=True) or len(groups) > 1


def test_groups_of_one_width_get_the_same_new_one() -> None:
    one = GroupWidths(group_id="a", current=96, unit=8, widths=multiples_between(8, 16, 96))
    two = GroupWidths(group_id="b", current=96, unit=12, widths=multiples_between(12, 12, 96))
    assert joint_widths([one, two]) == [(72, 72), (48, 48), (24, 24)]


@given(choices=st.lists(st.lists(factors, min_size=1, max_size=3), min_size=1, max_size=4))
def test_other_units_are_the_multiples_of_every_choice(choices: list[list[int]]) -> None:
    units = {math.lcm(2, *choice) for choice in itertools.product(*choices)}
    assert _units(group(64, divisor=2), list(map(tuple, choices))) == sorted(units, reverse=True)


def test_other_units_of_many_programs_are_found_at_once() -> None:
    choices = [tuple(n * part for part in range(1, 11)) for n in (1, 2, 4, 8) * 10]
    assert len(_units(group(512), choices)) < 1000, "of 10 to the power of 40 choices"


def test_between_widths_that_are_far_apart_there_are_finer_ones() -> None:
    tuned = world({"stem": (2, 16), "flat": (4, 8)})
    coarse, fine = (
        group_widths(group(32), 32, tuned, least=1, finer=finer) for finer in (False, True)
    )
    assert (coarse.unit, coarse.widths) == (16, (16,))
    assert (fine.unit, fine.widths) == (8, (24, 16, 8))
    narrow = group_widths(group(32), 7, tuned, least=3, finer=True)
    assert (narrow.unit, narrow.widths) == (1, (6, 5, 4, 3))
    in_blocks = group_widths(group(36, divisor=3), 24, tuned, least=1, finer=True)
    assert (in_blocks.unit, in_blocks.widths) == (6, (18, 12, 6))


def test_where_the_programs_widths_are_close_there_are_no_finer_ones() -> None:
    tuned = world({"stem": (16, 16), "flat": (8, 8)})
    for current in (256, 64):
        coarse, fine = (
            group_widths(group(256), current, tuned, least=1, finer=finer)
            for finer in (False, True)
        )
        assert fine == coarse and coarse.unit == 16


def test_a_group_whose_programs_are_not_known_has_no_finer_widths() -> None:
    tuned = world({"stem": (2, 16), "flat": (4, 8)}, lost="flat")
    assert group_widths(group(32), 32, tuned, least=1, finer=True).widths == ()
