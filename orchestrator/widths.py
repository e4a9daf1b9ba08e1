"""Structure-preserving widths: which channel counts keep the fastest programs' inner loops.

A program tiles its output-channel loop; the last factor is the vector factor. A width that every
vector factor divides can be had by re-splitting the other factors, so all programs of the group
keep their structure. Where no such width is left (a vector factor as wide as the layer), the vector
factors of programs nearly as fast serve instead, and as a last resort their halves and quarters: a
transplant is measured before it counts, whatever its vector factor. Whole numbers throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from pydantic import Field

from schemas.base import Schema
from schemas.network import ChannelGroup
from schemas.table import NetworkTable
from schemas.work import TaskLatency, Tuned


class GroupWidths(Schema):
    """The widths a channel group may be cut to, widest first."""

    group_id: str
    current: int
    unit: int = Field(ge=1, description="Every width is a multiple of this.")
    widths: tuple[int, ...]
    reason: str = Field(default="", description="Why there is no width.")


_FINE_STEPS = 4
"""So many lie between a width and none where finer ones than the programs' are asked for."""


def group_widths(
    group: ChannelGroup, current: int, tuned: Tuned, least: int, *, finer: bool = False
) -> GroupWidths:
    """The structure-preserving widths of a group below its current one, down to ``least``.

    ``finer``: where they are further apart than a quarter of the current width, those in between.
    """
    refusal = _unknown_program(group, tuned)
    if refusal:
        return GroupWidths(
            group_id=group.group_id, current=current, unit=group.divisor, widths=(), reason=refusal
        )
    unit = math.lcm(group.divisor, *vector_factors(group, tuned))
    widths = multiples_between(unit, max(unit, least), current)
    for other in _other_units(group, tuned):
        if not widths:
            unit, widths = other, multiples_between(other, max(other, least), current)
    fine = _fine_unit(group.divisor, current)
    if finer and fine < unit:
        unit, widths = fine, multiples_between(fine, max(fine, least), current)
    reason = "" if widths else f"no multiple of {unit} from {least} to below {current} channels"
    return GroupWidths(
        group_id=group.group_id, current=current, unit=unit, widths=widths, reason=reason
    )


def _fine_unit(divisor: int, current: int) -> int:
    """The largest power of two of ``divisor`` channels that is at most a quarter of ``current``."""
    unit = divisor
    while 2 * unit * _FINE_STEPS <= current:
        unit *= 2
    return unit


def tenths(group: ChannelGroup, current: int, tuned: Tuned, least: int) -> GroupWidths:
    """Steps of a tenth of the dense width, whatever the programs: for an ablation.

    What is known of the programs is asked for as in ``group_widths``, to differ in the widths only.
    """
    reason = _unknown_program(group, tuned)
    unit = group.share(0.1)
    widths = tuple(range(current - unit, least - 1, -unit))
    widths = () if reason else widths
    reason = reason or ("" if widths else f"no step of {unit} from {current} channels to {least}")
    return GroupWidths(
        group_id=group.group_id, current=current, unit=unit, widths=widths, reason=reason
    )


def vector_factors(group: ChannelGroup, tuned: Tuned) -> tuple[int, ...]:
    """The vector factors of the fastest programs that compute the group's channels.

    Of a program that does not vectorise this loop, the innermost factor above 1.
    """
    tasks = _tasks(tuned.table, group.producers)
    entries = [entry for entry in tuned.latencies if entry.task_id in tasks.values()]
    return tuple(_innermost(entry.channel_tiles) for entry in entries if entry.channel_tiles)


def _other_units(group: ChannelGroup, tuned: Tuned) -> list[int]:
    """Units where those of the fastest programs leave no width, in the order they are tried.

    First by the vector factors of programs nearly as fast, the largest unit first; then by the
    halves and quarters of all of them.
    """
    tasks = _tasks(tuned.table, group.producers)
    entries = [
        entry
        for entry in tuned.latencies
        if entry.task_id in tasks.values() and entry.channel_tiles
    ]
    if not entries:
        return []
    measured = [
        tuple(factor for factor in entry.vector_factors if factor > 1)
        or (_innermost(entry.channel_tiles),)
        for entry in entries
    ]
    halved = [
        (
            *(factor // part for factor in factors for part in (1, 2, 4) if factor % part == 0),
            entry.channel_tiles[-1],
        )
        for entry, factors in zip(entries, measured, strict=True)
    ]
    return [*_units(group, measured), *_units(group, halved)]


def _innermost(tiles: Sequence[int]) -> int:
    return next((factor for factor in reversed(tiles) if factor > 1), 1)


def _units(group: ChannelGroup, factors: Sequence[tuple[int, ...]]) -> list[int]:
    """The multiples that choices of one factor for each program have in common. Programs one by
    one: choices are many, their multiples few."""
    units = {group.divisor}
    for choices in factors:
        units = {math.lcm(unit, factor) for unit in units for factor in choices}
    return sorted(units, reverse=True)


def least_width(channels: int, min_width_fraction: float) -> int:
    """The least number of channels that is at least this share of all, and not none."""
    return max(1, math.ceil(Fraction(str(min_width_fraction)) * channels))


def multiples_between(unit: int, least: int, below: int) -> tuple[int, ...]:
    """The multiples of ``unit`` from ``least`` to below ``below``, widest first."""
    first = -(-least // unit) * unit
    return tuple(reversed(range(first, below, unit)))


def joint_widths(groups: Sequence[GroupWidths]) -> list[tuple[int, ...]]:
    """Widths of several groups cut at once, the weakest cut first.

    Groups of one width get the same new one. Otherwise the widest group leads, and the others
    follow in proportion, rounded down to a width of their own.
    """
    if len({group.current for group in groups}) == 1:
        common = set(groups[0].widths).intersection(*(group.widths for group in groups[1:]))
        if common:
            return [(width,) * len(groups) for width in sorted(common, reverse=True)]
    lead = max(groups, key=lambda group: group.current)
    cuts = [
        tuple(
            width if group is lead else _in_proportion(group, width, lead.current)
            for group in groups
        )
        for width in lead.widths
    ]
    return list(dict.fromkeys(cuts))


def _in_proportion(group: GroupWidths, lead_width: int, lead_current: int) -> int:
    wanted = group.current * lead_width // lead_current
    return next((width for width in group.widths if width <= wanted), group.widths[-1])


def _tasks(table: NetworkTable, modules: Sequence[str]) -> dict[str, str]:
    """Torch module -> task, for those of the modules that the compiled network has."""
    return {
        subgraph.module: subgraph.task_id
        for subgraph in table.subgraphs
        if subgraph.module is not None and subgraph.module in modules
    }


def _unknown_program(group: ChannelGroup, tuned: Tuned) -> str:
    """Why the group's programs are not all known; empty when they are."""
    known: dict[str, TaskLatency] = {entry.task_id: entry for entry in tuned.latencies}
    for modules, role in ((group.producers, "computes"), (group.consumers, "reads")):
        tasks = _tasks(tuned.table, modules)
        for module in modules:
            entry = known.get(tasks.get(module, ""))
            if entry is None:
                return f"{module}, which {role} the channels, is no task of the compiled network"
            if entry.program_id is None:
                return f"no program ran of the task of {module}, which {role} the channels"
    return ""
