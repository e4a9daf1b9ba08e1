"""Schedule traces as JSON: which tiles they hold, and how one is re-split for another width.

A trace is ``[instructions, decisions]``; an instruction is ``[kind, inputs, attributes, outputs]``
and a decision ``[instruction index, value]``. Nothing here needs TVM.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Instruction = list[Any]
_PARALLEL = "meta_schedule.parallel"
"""The mark by which a block's loops are made parallel after the search."""


@dataclass(frozen=True)
class Tile:
    """One ``sample_perfect_tile`` decision of a block's loop."""

    instruction: int
    loop: int
    factors: tuple[int, ...]
    max_innermost: int


def dump_trace(trace: Any) -> str:
    """The JSON text of a TVM ``Trace``, post-processing included."""
    return json.dumps(trace.as_json(), default=lambda node: node.value, separators=(",", ":"))


def search_part(text: str) -> str:
    """The trace without its post-processing instructions."""
    instructions, decisions = json.loads(text)
    end = next(
        (i for i, instruction in enumerate(instructions) if instruction[0] == "EnterPostproc"),
        len(instructions),
    )
    kept = [decision for decision in decisions if decision[0] < end]
    return json.dumps([instructions[:end], kept], separators=(",", ":"))


def tiles_of(text: str, block: str) -> tuple[Tile, ...]:
    """The tile decisions of ``block``'s loops, in the order of the loops."""
    instructions, decisions = json.loads(text)
    chosen = {index: value for index, value in decisions}
    blocks: dict[str, str] = {}
    loops: dict[str, int] = {}
    tiles: list[Tile] = []
    for index, (kind, inputs, attributes, outputs) in enumerate(instructions):
        if kind == "GetSBlock":
            blocks[outputs[0]] = attributes[0]
        elif kind == "GetLoops" and blocks.get(inputs[0]) == block and not loops:
            loops = {name: position for position, name in enumerate(outputs)}
        elif kind == "SamplePerfectTile" and inputs[0] in loops and index in chosen:
            tiles.append(
                Tile(
                    index,
                    loops[inputs[0]],
                    tuple(int(f) for f in chosen[index]),
                    int(attributes[1]),
                )
            )
    return tuple(tiles)


def factors_of_loop(text: str, block: str | None, loop: int | None) -> tuple[int, ...]:
    """The factors into which the trace splits one loop; empty when it does not tile it."""
    if block is None or loop is None:
        return ()
    return next((tile.factors for tile in tiles_of(text, block) if tile.loop == loop), ())


def with_factors(text: str, changes: dict[int, tuple[int, ...]]) -> str:
    """The trace's search part with the decisions of some instructions replaced."""
    instructions, decisions = json.loads(search_part(text))
    changed = [
        [index, list(changes[index]) if index in changes else value] for index, value in decisions
    ]
    return json.dumps([instructions, changed], separators=(",", ":"))


def with_decisions_of(text: str, other: str) -> str | None:
    """The trace's search part with another's decisions, one sampling instruction for another.

    None where the two do not sample the same kinds in the same order: for another structure the
    decisions mean nothing.
    """
    instructions, _ = json.loads(search_part(text))
    own = _sampled(text)
    given = _sampled(other)
    if [kind for _, kind, _ in own] != [kind for _, kind, _ in given]:
        return None
    decisions = [[index, value] for (index, _, _), (_, _, value) in zip(own, given, strict=True)]
    return json.dumps([instructions, decisions], separators=(",", ":"))


def uses_threads(text: str) -> bool:
    """Whether the program runs a loop in parallel."""
    return without_threads(text) is not None


def without_threads(text: str) -> str | None:
    """The trace's search part with no loop run in parallel; None where none is.

    Starting and joining threads takes microseconds: a small program is faster on one core.
    """
    instructions, decisions = json.loads(search_part(text))
    kept: list[Instruction] = []
    places: dict[int, int] = {}
    for index, instruction in enumerate(instructions):
        if instruction[0] == "Parallel" or instruction[2] == [_PARALLEL]:
            continue
        places[index] = len(kept)
        kept.append(instruction)
    if len(kept) == len(instructions):
        return None
    moved = [[places[index], value] for index, value in decisions]
    return json.dumps([kept, moved], separators=(",", ":"))


def _sampled(text: str) -> list[tuple[int, str, Any]]:
    """Index, kind and decision of the search part's sampling instructions."""
    instructions, decisions = json.loads(search_part(text))
    return [(index, instructions[index][0], value) for index, value in sorted(decisions)]


def transplants(
    text: str, block: str, extents: tuple[int, ...], spatial: frozenset[int], limit: int
) -> list[str]:
    """Traces for a workload of other loop extents, the likeliest to be fast first.

    ``extents`` are the new workload's, loop by loop. A spatial loop whose extent changed keeps its
    innermost factor, the vector factor, and has the rest re-split; only where it does not divide,
    the largest part of it that does takes its place. A reduction loop keeps its innermost factor
    where that divides. The nearest split is also tried with its other decisions moved by one, in
    the order that was measured to find the fastest soonest (benchmarks/EXPERIMENTS.md,
    variants of a transplant). An empty list means that there is no transplant.
    """
    choices: list[list[tuple[int, tuple[int, ...]]]] = []
    for tile in tiles_of(text, block):
        extent = extents[tile.loop]
        if math.prod(tile.factors) == extent:
            continue
        factors = tile.factors
        if tile.loop in spatial:
            factors = (*factors[:-1], math.gcd(factors[-1], extent))
        splits = resplits(factors, extent, keep_innermost=tile.loop in spatial, limit=limit)
        splits = [split for split in splits if split[-1] <= tile.max_innermost]
        if not splits:
            return []
        choices.append([(tile.instruction, split) for split in splits])
    if not choices:
        return [search_part(text)]
    nearest, *others = [with_factors(text, dict(split)) for split in _diagonal(choices, limit)]
    more, less = neighbours(nearest, 1), neighbours(nearest, -1)
    return [nearest, *less, *others[:2], *more, *others[2:]][:limit]


def neighbours(text: str, by: int) -> list[str]:
    """The trace's search part with one decision besides the tiles moved by one (``by`` 1 or -1),
    each time another: how far a block's loops are unrolled, or the loop at which it is computed.

    Not every place is one where a block can be computed: TVM takes the one before it then.
    """
    instructions, decisions = json.loads(search_part(text))
    found = []
    for position, (index, value) in enumerate(decisions):
        kind, _, attributes, _ = instructions[index]
        if kind == "SampleComputeLocation" or (
            kind == "SampleCategorical" and value + by in range(len(attributes[0]))
        ):
            changed = [*decisions[:position], [index, value + by], *decisions[position + 1 :]]
            found.append(json.dumps([instructions, changed], separators=(",", ":")))
    return found


def resplits(
    factors: tuple[int, ...], extent: int, *, keep_innermost: bool, limit: int
) -> list[tuple[int, ...]]:
    """Ways to split ``extent`` into as many factors, nearest to ``factors`` first.

    The distance is the sum of the factors' log-ratios, each weighted by its level, so that the
    counts of outer loops change before those of inner ones. With ``keep_innermost`` the last factor
    stays.
    """
    inner = factors[-1]
    if keep_innermost:
        inners = [inner] if extent % inner == 0 else []
    else:
        inners = [value for value in range(1, extent + 1) if extent % value == 0]
    found = [
        (*outer, value) for value in inners for outer in _splits(extent // value, len(factors) - 1)
    ]

    def distance(split: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        levels = zip(split, factors, strict=True)
        away = sum((i + 1) * abs(math.log(new / old)) for i, (new, old) in enumerate(levels))
        return (round(away, 9), split)

    return sorted(found, key=distance)[:limit]


def _splits(extent: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (extent,)
        return
    for first in range(1, extent + 1):
        if extent % first == 0:
            for rest in _splits(extent // first, parts - 1):
                yield (first, *rest)


def _diagonal(
    choices: list[list[tuple[int, tuple[int, ...]]]], limit: int
) -> list[tuple[tuple[int, tuple[int, ...]], ...]]:
    """Combinations of the choices by the sum of their ranks, best first."""
    ranked = itertools.product(*(list(enumerate(options)) for options in choices))
    ordered = sorted(ranked, key=lambda combination: sum(rank for rank, _ in combination))
    return [tuple(option for _, option in combination) for combination in ordered[:limit]]
