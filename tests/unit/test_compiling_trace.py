"""Traces as JSON: what is read from them, and which re-splits and transplants they have."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.compiling.trace import (
    factors_of_loop,
    neighbours,
    resplits,
    search_part,
    tiles_of,
    transplants,
    with_decisions_of,
    with_factors,
    without_threads,
)

HEIGHT, CHANNEL, REDUCTION = 0, 1, 2
SPATIAL = frozenset({HEIGHT, CHANNEL})
TILES = {2: [8, 1, 2, 2], 3: [6, 1, 1, 16], 4: [8, 8]}


def trace(tiles: dict[int, list[int]] | None = None, max_innermost: int = 64) -> str:
    """A convolution with height, output channels and a reduction, and its relu."""
    decisions: dict[int, Any] = {**TILES, **(tiles or {}), 6: [32, 3], 8: 5, 11: 7}
    instructions = [
        ["GetSBlock", [], ["conv", "main"], ["b0"]],
        ["GetLoops", ["b0"], [], ["l0", "l1", "l2"]],
        ["SamplePerfectTile", ["l0"], [4, max_innermost], ["v0", "v1", "v2", "v3"]],
        ["SamplePerfectTile", ["l1"], [4, max_innermost], ["v4", "v5", "v6", "v7"]],
        ["SamplePerfectTile", ["l2"], [2, max_innermost], ["v8", "v9"]],
        ["GetSBlock", [], ["relu", "main"], ["b1"]],
        ["SamplePerfectTile", ["m0"], [2, 64], ["v10", "v11"]],
        ["GetLoops", ["b1"], [], ["m0"]],
        ["SampleCategorical", [], [[0, 16], [0.5, 0.5]], ["v12"]],
        ["GetLoops", ["b0"], [], ["n0", "n1", "n2"]],
        ["EnterPostproc", [], [], []],
        ["SampleCategorical", [], [[0, 1], [0.5, 0.5]], ["v13"]],
    ]
    return json.dumps([instructions, [[index, value] for index, value in decisions.items()]])


def test_a_trace_takes_the_decisions_of_another_of_its_structure() -> None:
    own = json.loads(trace())
    own[0].insert(5, ["GetSBlock", [], ["sum", "main"], ["b9"]])  # something else fused behind
    own[1] = [[index + (index >= 5), value] for index, value in own[1]]
    given = trace({3: [2, 3, 1, 16]})
    found = with_decisions_of(json.dumps(own), given)
    assert found is not None
    instructions, decisions = json.loads(found)
    assert instructions == own[0][: own[0].index(["EnterPostproc", [], [], []])]
    assert factors(found) == factors(given) != factors(trace())
    assert decisions[-1] == [9, 5], "post-processing decides for itself"


def test_decisions_mean_nothing_to_another_structure() -> None:
    other = json.loads(trace())
    other[0][4] = ["SampleCategorical", [], [[1, 2], [0.5, 0.5]], ["v8"]]
    assert with_decisions_of(trace(), json.dumps(other)) is None


def parallel(value: int) -> str:
    """The trace with a parallel loop by an instruction, and others by a mark of this value."""
    own = json.loads(trace())
    own[0].insert(2, ["Parallel", ["l0"], [], []])
    own[0].insert(-2, ["Annotate", ["b2", value], ["meta_schedule.parallel"], []])
    own[0].insert(-2, ["Annotate", ["b2", 16], ["meta_schedule.unroll"], []])
    own[1] = [[index + (index >= 2) + 2 * (index >= 10), value] for index, value in own[1]]
    return json.dumps(own)


def choosing(value: int) -> str:
    """The trace with this of three choices of how far loops are unrolled."""
    own = json.loads(trace())
    own[0][8][2] = [[0, 16, 64], [0.4, 0.3, 0.3]]
    own[1] = [[index, value if index == 8 else decision] for index, decision in own[1]]
    return json.dumps(own)


def choice(text: str) -> int:
    return int(dict(json.loads(text)[1])[8])


def test_neighbours_differ_in_one_decision_besides_the_tiles() -> None:
    assert [choice(text) for by in (-1, 1) for text in neighbours(choosing(1), by)] == [0, 2]
    assert neighbours(choosing(0), -1) == neighbours(choosing(2), 1) == []
    assert factors(neighbours(choosing(1), 1)[0]) == factors(trace())
    placed = json.loads(choosing(1))
    placed[0].insert(9, ["SampleComputeLocation", ["b1"], [], ["v14"]])
    placed[1] = [decision for decision in placed[1] if decision[0] < 10] + [[9, 3]]
    moved = [dict(json.loads(text)[1]) for text in neighbours(json.dumps(placed), -1)]
    assert [(each[8], each[9]) for each in moved] == [(0, 3), (1, 2)]


def test_the_neighbours_of_the_nearest_split_are_tried_too() -> None:
    extents = (32, 64, 64)
    found = transplants(choosing(1), "conv", extents, SPATIAL, 6)
    splits = transplants(trace(), "conv", extents, SPATIAL, 6)
    assert [choice(text) for text in found] == [1, 0, 1, 1, 2, 1]
    tiles = [factors(text) for text in found]
    nearest = factors(splits[0])
    assert tiles == [nearest, nearest, *map(factors, splits[1:3]), nearest, factors(splits[3])]
    assert found[:2] == transplants(choosing(1), "conv", extents, SPATIAL, 2)


def test_a_program_without_threads_keeps_its_other_decisions() -> None:
    found = without_threads(parallel(32))
    assert found is not None
    instructions, decisions = json.loads(found)
    assert all(kind != "Parallel" for kind, _, _, _ in instructions)
    marks = {a[0]: i[1] for kind, i, a, _ in instructions if kind == "Annotate"}
    assert marks == {"meta_schedule.unroll": 16}
    assert factors(found) == factors(trace())
    assert [[index, value] for index, value in decisions] == json.loads(search_part(trace()))[1]


def test_a_program_without_threads_has_no_other_without_threads() -> None:
    found = without_threads(parallel(32))
    assert found is not None and without_threads(found) is None
    assert without_threads(trace()) is None


def factors(text: str) -> dict[int, tuple[int, ...]]:
    return {tile.loop: tile.factors for tile in tiles_of(text, "conv")}


def moved(extents: tuple[int, ...], limit: int = 4, **more: Any) -> list[dict[int, Any]]:
    """The factors of the transplants of ``trace`` to other extents."""
    found = transplants(trace(**more), "conv", extents, SPATIAL, limit)
    return [factors(text) for text in found]


def test_tiles_are_those_of_the_block_by_loop() -> None:
    assert factors(trace()) == {0: (8, 1, 2, 2), 1: (6, 1, 1, 16), 2: (8, 8)}
    assert [tile.instruction for tile in tiles_of(trace(), "conv")] == [2, 3, 4]
    assert {tile.max_innermost for tile in tiles_of(trace(), "conv")} == {64}
    assert tiles_of(trace(), "none") == ()


def test_factors_of_one_loop() -> None:
    assert factors_of_loop(trace(), "conv", CHANNEL) == (6, 1, 1, 16)
    assert factors_of_loop(trace(), "conv", 7) == ()
    assert factors_of_loop(trace(), None, 0) == () == factors_of_loop(trace(), "conv", None)


def test_the_search_part_ends_before_post_processing() -> None:
    instructions, decisions = json.loads(search_part(trace()))
    assert [instruction[0] for instruction in instructions][-1] == "GetLoops"
    assert len(instructions) == 10
    assert [index for index, _ in decisions] == [2, 3, 4, 6, 8]
    assert search_part(search_part(trace())) == search_part(trace())


def test_factors_are_replaced_and_nothing_else() -> None:
    changed = with_factors(trace(), {3: (5, 1, 1, 16)})
    assert factors(changed) == {**factors(trace()), CHANNEL: (5, 1, 1, 16)}
    assert with_factors(changed, {3: (6, 1, 1, 16)}) == search_part(trace())


splits = st.lists(st.integers(1, 8), min_size=2, max_size=4).map(tuple)


def distance(split: tuple[int, ...], old: tuple[int, ...]) -> float:
    pairs = enumerate(zip(split, old, strict=True), start=1)
    return sum(level * abs(math.log(a / b)) for level, (a, b) in pairs)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(old=splits, extent=st.integers(1, 240), keep=st.booleans(), limit=st.integers(1, 12))
def test_resplits(old: tuple[int, ...], extent: int, keep: bool, limit: int) -> None:
    found = resplits(old, extent, keep_innermost=keep, limit=limit)
    everything = resplits(old, extent, keep_innermost=keep, limit=10**6)
    assert found == everything[:limit]
    assert len(set(everything)) == len(everything)
    for split in found:
        assert len(split) == len(old) and math.prod(split) == extent
        assert all(type(factor) is int and factor >= 1 for factor in split)
        assert not keep or split[-1] == old[-1]
    distances = [distance(split, old) for split in everything]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(distances))
    assert bool(found) == (not keep or extent % old[-1] == 0)
    if math.prod(old) == extent:
        assert found[0] == old


@settings(max_examples=100, deadline=None, derandomize=True)
@given(old=st.tuples(st.integers(1, 64), st.integers(1, 16)), outer=st.integers(1, 64))
def test_a_reduction_keeps_its_innermost_factor_where_that_divides(
    old: tuple[int, int], outer: int
) -> None:
    first = resplits(old, outer * old[1], keep_innermost=False, limit=1)
    assert first == [(outer, old[1])]


def test_an_equal_workload_keeps_the_trace() -> None:
    assert transplants(trace(), "conv", (32, 96, 64), SPATIAL, 4) == [search_part(trace())]


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 112, 160])
def test_the_vector_factor_stays_at_every_multiple_of_it(width: int) -> None:
    found = moved((32, width, 64))
    assert 1 <= len(found) <= 4
    for tiles in found:
        assert tiles[CHANNEL][-1] == 16 and math.prod(tiles[CHANNEL]) == width
        assert tiles[HEIGHT] == (8, 1, 2, 2) and tiles[REDUCTION] == (8, 8)
    assert found[0][CHANNEL] == (width // 16, 1, 1, 16)


@pytest.mark.parametrize(("width", "vector"), [(88, 8), (84, 4), (90, 2), (45, 1), (6, 2)])
def test_a_part_of_the_vector_factor_is_the_last_resort(width: int, vector: int) -> None:
    found = moved((32, width, 64))
    assert found and {tiles[CHANNEL][-1] for tiles in found} == {vector}


@pytest.mark.parametrize(("width", "kept"), [(10, 2), (20, 4), (18, 6), (7, 1)])
def test_of_a_vector_factor_that_does_not_divide_the_largest_part_is_kept(
    width: int, kept: int
) -> None:
    found = moved((32, width, 64), tiles={3: [8, 1, 1, 12]})
    assert found and {tiles[CHANNEL][-1] for tiles in found} == {kept}


def test_no_transplant_beyond_the_largest_innermost_factor() -> None:
    assert moved((32, 48, 64), max_innermost=8) == []


def test_both_sides_change_together() -> None:
    found = moved((32, 80, 48), limit=6)
    assert len(found) == 6
    assert all(math.prod(t[CHANNEL]) == 80 and math.prod(t[REDUCTION]) == 48 for t in found)
    assert found[0] == {0: (8, 1, 2, 2), 1: (5, 1, 1, 16), 2: (6, 8)}
    assert len({tuple(sorted(tiles.items())) for tiles in found}) == 6


def test_a_prime_reduction_is_split_though_its_factor_does_not_divide() -> None:
    assert {math.prod(tiles[REDUCTION]) for tiles in moved((32, 96, 7))} == {7}


def test_a_block_without_tiles_is_taken_as_it_is() -> None:
    assert transplants(trace(), "pool", (5,), SPATIAL, 4) == [search_part(trace())]
