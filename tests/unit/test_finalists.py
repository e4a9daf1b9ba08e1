"""Which of a task's fastest programs is used: the one that is fastest inside the network."""

from __future__ import annotations

import fake_world
import pytest

from schemas.table import Program
from workers.tuning.finalists import finalists, inside_latencies, line_ups
from workers.tuning.stored import fastest, share_of_origin

THREADS = '[[["Parallel",["l0"],[],[]]],[]]'
ONE_CORE = "[[],[]]"


def program(
    name: str,
    latency_ms: float | None,
    inside_ms: float | None = None,
    trace: str = THREADS,
) -> Program:
    return Program(
        program_id=name,
        task_id="task",
        device_model="m",
        trace=trace,
        source="search",
        inside_ms=inside_ms,
        measurement=None if latency_ms is None else fake_world.measurement(latency_ms),
    )


def names(programs: list[Program]) -> list[str]:
    return [each.program_id for each in programs]


def test_finalists_are_the_fastest_that_ran_and_nearly_as_fast_as_each_other() -> None:
    programs = [program("c", 1.1), program("a", 1.0), program("x", None), program("d", 1.3)]
    assert names(finalists(programs, 3)) == ["a", "c"]
    assert names(finalists(programs, 1)) == ["a"]
    assert finalists([program("x", None)], 3) == []


@pytest.mark.parametrize(
    ("scale", "alone_ms", "expected"),
    [
        (0.004, 2.0, ["a", "b", "alone"]),
        (0.004, 1.05, ["a", "alone", "b"]),
        (0.004, 2.6, ["a", "b", "c"]),
        (1.0, 1.3, ["a", "b", "c"]),
    ],
)
def test_of_a_small_task_one_finalist_runs_on_one_core(
    scale: float, alone_ms: float, expected: list[str]
) -> None:
    """Unless it takes much longer, or is among the fastest anyway."""
    programs = [program(n, scale * ms) for n, ms in (("a", 1.0), ("b", 1.1), ("c", 1.15))]
    programs.append(program("alone", scale * alone_ms, trace=ONE_CORE))
    assert names(finalists(programs, 3)) == expected
    assert names(finalists(programs, 1)) == ["a"]


def test_a_line_up_has_a_program_for_every_task_that_has_one() -> None:
    stored = {
        "many": [program("a", 1.0), program("b", 1.1), program("c", 1.15)],
        "one": [program("z", 2.0)],
        "none": [program("x", None)],
    }
    found = line_ups(stored, 3)
    assert [{t: p.program_id for t, p in line_up.items()} for line_up in found] == [
        {"many": "a", "one": "z"},
        {"many": "b", "one": "z"},
        {"many": "c", "one": "z"},
    ]
    assert line_ups({"none": stored["none"]}, 3) == []


def test_a_device_that_changes_its_pace_between_turns_changes_no_verdict() -> None:
    stored = {"task": [program("a", 1.0), program("b", 1.1)], "gone": [program("g", 0.1)]}
    ups = line_ups(stored, 2)
    watched = [[{"task": pace * ms} for ms in (2.0, 1.8)] for pace in (1.0, 3.0, 1.1)]
    found = inside_latencies(ups, watched)
    assert found["task", "b"] / found["task", "a"] == pytest.approx(0.9)
    assert found["task", "a"] == pytest.approx(2.2), "the median of the turns"
    assert not any(task_id == "gone" for task_id, _ in found), "it is not called at all"


def test_the_program_is_the_fastest_inside_unless_a_faster_one_was_found_since() -> None:
    watched = [program("a", 1.0, 2.0), program("b", 1.1, 1.8)]
    assert fastest(watched) == watched[1]
    slower = [*watched, program("c", 1.05)]
    assert fastest(slower) == watched[1], "one that was beaten by itself already"
    since = [*watched, program("d", 0.9)]
    assert fastest(since) == since[-1]
    assert fastest([program("x", None)]) is None


def test_programs_that_were_searched_are_compared_as_they_are_by_themselves() -> None:
    """The origin was chosen inside the network, where it is faster than it is alone."""
    origins = [program("chosen", 1.2, inside_ms=1.0), program("alone", 1.0, inside_ms=1.1)]
    assert fastest(origins) == origins[0]
    assert share_of_origin([program("new", 0.5)], origins) == 0.5
    assert share_of_origin(origins, origins) == 1.0, "a task that did not change"


def test_a_transplant_is_compared_with_what_it_was_measured_beside() -> None:
    origins = [program("a", 1.0), program("b", 1.5)]
    slow_spell = program("moved", 1.8).model_copy(update={"parent": "b", "beside_ms": 3.0})
    assert share_of_origin([slow_spell], origins) == pytest.approx(0.6 * 1.5)


def test_without_a_program_there_is_no_share() -> None:
    assert share_of_origin([program("x", None)], [program("a", 1.0)]) == 0.0
    assert share_of_origin([program("a", 1.0)], []) == 0.0
