"""Where the state machine goes on when a run is started again."""

from __future__ import annotations

import fake_world
import pytest
from machine_world import CLOCK, World

from orchestrator import machine
from orchestrator.states import (
    AnyState,
    Cancelled,
    Done,
    Failed,
    Preparing,
    Proposing,
    Ranking,
    Retuning,
    Screening,
    Tuning,
)
from orchestrator.transition import Clock


def test_failing_cancelling_and_going_on() -> None:
    world = World(fake_world.config())
    for state in (machine.start("host"), world.until(Screening)):
        assert not isinstance(state, Done | Failed | Cancelled)
        failed = machine.fail(state, "the device is gone").next_state
        assert isinstance(failed, Failed) and failed.error == "the device is gone"
        again = machine.resume(failed, world.config, CLOCK)
        assert again is not None and again.next_state == state
        cancelled = machine.cancel(state).next_state
        again = machine.resume(cancelled, world.config, CLOCK)
        assert again is not None and again.next_state == state
        assert machine.resume(state, world.config, CLOCK) is None


def test_another_floor_is_prepared_for_anew_until_a_candidate_is_decided() -> None:
    world = World(fake_world.config())
    lower = fake_world.config(
        prune={"accuracy_floor": 0.5, "tasks_per_round": 1, "fine_tuned_per_round": 1}
    )
    screening = world.until(Screening)
    assert machine.resume(screening, world.config, CLOCK) is None
    stopped = machine.resume(screening, lower, CLOCK)
    assert stopped is not None and isinstance(stopped.next_state, Cancelled)
    again = machine.resume(stopped.next_state, lower, CLOCK)
    assert again is not None and isinstance(again.next_state, Preparing)
    world.config = lower
    tuning = world.step(again.next_state)
    assert isinstance(tuning, Tuning) and tuning.search.floor == 0.5

    decided = World(fake_world.config()).until(Retuning)
    assert machine.resume(decided, lower, CLOCK) is None


@pytest.mark.parametrize("field", ["max_rounds", "max_hours"])
def test_more_of_the_budget_that_ended_a_search_takes_it_further(field: str) -> None:
    small, spent_s = {"max_rounds": 1, "max_hours": 100.0}, 0.0
    if field == "max_hours":
        small, spent_s = {"max_rounds": 100, "max_hours": 1.0}, 3600.0
    world = World(fake_world.config(budget=small))
    state: AnyState = machine.start("host")
    while not state.is_terminal:
        late = isinstance(state, Proposing) and state.search.round == 1
        state = world.step(state, clock=Clock(wall_s=CLOCK.wall_s + (spent_s if late else 0.0)))
    assert isinstance(state, Done) and state.search.round == 1
    assert machine.resume(state, world.config, CLOCK) is None
    told = machine.farewell(state, world.config)
    assert f"raise budget.{field} and give the same command again" in told

    larger = fake_world.config(budget={**small, field: 2 * small[field]})
    again = machine.resume(state, larger, Clock(wall_s=50_000.0))
    assert again is not None and f"budget.{field} has been raised" in again.message
    following = again.next_state
    assert isinstance(following, Ranking)
    assert following.search.stopped_by == "" and following.search.round == 1
    assert following.search.began_s == 50_000.0 - spent_s
    world.config = larger
    proposing = world.step(following)
    assert isinstance(world.step(proposing, clock=Clock(wall_s=50_000.0)), Screening)


def test_what_is_spent_is_told_and_a_training_is_spent_once() -> None:
    world = World(fake_world.config(budget={"max_steps": 1}))
    state = world.until(Done)
    assert isinstance(state, Done) and state.search.trained_long
    assert "1 step accepted" in machine.farewell(state, world.config)
    spent_s = state.search.train_s
    again = machine.resume(state, fake_world.config(budget={"max_steps": 2}), CLOCK)
    assert again is not None and isinstance(again.next_state, Ranking)
    # No step is taken any more, so in the end the same network is trained for long.
    world.config = fake_world.config(budget={"max_rounds": state.search.round})
    once_more = world.go_on(again.next_state, Done)
    assert isinstance(once_more, Done) and once_more.search.train_s == spent_s
    hours = fake_world.config(budget={"max_gpu_hours": 1.5})
    late = once_more.search.model_copy(
        update={"train_s": 5832.0, "stopped_by": "budget.max_gpu_hours: 1.02 of 1 hours"}
    )
    told = machine.farewell(once_more.model_copy(update={"search": late}), hours)
    assert "1.62 of 1.5 hours" in told and "raise budget.max_gpu_hours" in told


def test_a_search_that_ended_by_itself_does_not_go_on() -> None:
    world = World(fake_world.config())
    state = world.until(Done)
    assert isinstance(state, Done)
    assert machine.resume(state, fake_world.config(budget={"max_rounds": 99}), CLOCK) is None
    assert machine.farewell(state, world.config).endswith("nothing is left to do")
