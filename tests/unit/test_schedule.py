"""Trials go first where they are owed, then where they pay, and end where nothing is gained."""

from __future__ import annotations

import math

import pytest

from workers.tuning.schedule import Allowance, Schedule, TaskProgress


def carried_out(
    schedule: Schedule, latency_ms: dict[str, list[float]], at_once: int = 1
) -> list[str]:
    """Run the schedule; each task's programs have the latencies given, in order."""
    order = []
    while following := schedule.next_rounds(at_once):
        assert len({task.task_id for task, _ in following}) == len(following) <= at_once
        for task, count in following:
            found = latency_ms[task.task_id][task.started : task.started + count]
            task.exhausted = len(found) < count
            task.started += len(found)
            task.latencies_ms += found
            order.append(task.task_id)
    return order


def one_work(tasks: list[TaskProgress], total: int, round_size: int) -> Schedule:
    return Schedule([Allowance(tasks, total)], round_size)


def task(name: str, owed: int, weight: int = 1, poolable: bool = True) -> TaskProgress:
    return TaskProgress(task_id=name, weight=weight, owed=owed, poolable=poolable)


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_every_task_gets_what_it_is_owed(at_once: int) -> None:
    tasks = [task("slow", 5), task("quick", 3), task("small", 2, poolable=False)]
    latencies = {"slow": [9.0] * 50, "quick": [0.001] * 50, "small": [0.001] * 50}
    carried_out(one_work(tasks, 0, 2), latencies, at_once)
    assert [each.started for each in tasks] == [5, 3, 2]


def test_rounds_owed_are_taken_in_turns() -> None:
    tasks = [task("a", 4), task("b", 4)]
    latencies = {"a": [1.0] * 9, "b": [1.0] * 9}
    assert carried_out(one_work(tasks, 8, 2), latencies) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_all_trials_together_are_those_of_the_work(at_once: int) -> None:
    """Also where several tasks are searched at once, and the last ones share what is left."""
    falling = [1.0 * 0.9**n for n in range(99)]
    tasks = [task(name, 2) for name in "abc"]
    carried_out(one_work(tasks, 17, 4), dict.fromkeys("abc", falling), at_once)
    assert sum(each.started for each in tasks) == 17


def test_several_at_once_are_those_that_would_come_first() -> None:
    tasks = [task("done", 0, poolable=False), task("b", 2), task("c", 4), task("d", 2)]
    (first, _), (second, _) = one_work(tasks, 9, 2).next_rounds(2)
    assert (first.task_id, second.task_id) == ("b", "c")


def test_the_rest_goes_to_the_task_that_costs_most() -> None:
    improving = [10.0 * 0.9**n for n in range(100)]
    tasks = [task("cheap", 4), task("dear", 4), task("other", 4, poolable=False)]
    latencies = {
        "dear": improving,
        "cheap": [each / 100 for each in improving],
        "other": improving,
    }
    carried_out(one_work(tasks, 32, 4), latencies)
    assert [each.started for each in tasks] == [4, 24, 4]


def test_call_sites_count() -> None:
    same = [10.0 * 0.9**n for n in range(100)]
    tasks = [task("once", 4), task("often", 4, weight=5)]
    carried_out(one_work(tasks, 28, 4), {"once": same, "often": same})
    assert tasks[1].started > 2 * tasks[0].started


def test_a_task_that_has_converged_gets_no_more() -> None:
    tasks = [task("flat", 4), task("falling", 4)]
    latencies = {"flat": [100.0] * 99, "falling": [1.0 * 0.98**n for n in range(99)]}
    carried_out(one_work(tasks, 60, 4), latencies)
    assert tasks[0].started == 16  # three rounds without a gain beyond the first
    assert tasks[1].started == 44


def test_it_ends_early_when_all_have_converged() -> None:
    tasks = [task("a", 2), task("b", 2)]
    carried_out(one_work(tasks, 1000, 2), {"a": [1.0] * 999, "b": [2.0] * 999})
    assert sum(each.started for each in tasks) == 16


def test_a_task_whose_programs_all_fail_gets_only_what_it_is_owed() -> None:
    tasks = [task("broken", 4), task("fine", 4)]
    carried_out(one_work(tasks, 99, 4), {"broken": [math.inf] * 99, "fine": [1.0] * 99})
    assert [each.started for each in tasks] == [4, 16]


def test_an_exhausted_design_space_is_left_alone() -> None:
    tasks = [task("tiny", 8), task("large", 8)]
    falling = [1.0 * 0.9**n for n in range(99)]
    carried_out(one_work(tasks, 24, 4), {"tiny": [1.0] * 5, "large": falling})
    assert [each.started for each in tasks] == [5, 19]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_of_several_works_each_has_its_own_trials_and_the_most_promising_task_comes_first(
    at_once: int,
) -> None:
    falling = [1.0 * 0.9**n for n in range(99)]
    ours, theirs = [task("a", 2), task("b", 2)], [task("c", 2, weight=50), task("d", 0)]
    schedule = Schedule([Allowance(ours, 8), Allowance(theirs, 8)], round_size=2)
    latencies = dict.fromkeys("abcd", falling)
    for each in (*ours, *theirs):
        each.latencies_ms += [1.0]
    order = carried_out(schedule, latencies, at_once)
    assert sorted(order[:3]) == ["a", "b", "c"]  # what is owed to any of them
    assert "c" in order[3 : 3 + at_once]  # whoever it belongs to
    assert sum(each.started for each in ours) == sum(each.started for each in theirs) == 8


def test_several_works_share_a_wave() -> None:
    works = [Allowance([task(name, 2)], 2) for name in "abc"]
    following = Schedule(works, round_size=2).next_rounds(2)
    assert [(each.task_id, count) for each, count in following] == [("a", 2), ("b", 2)]
