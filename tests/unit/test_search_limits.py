"""What ends a search early: budgets, and the latency it was to reach."""

from __future__ import annotations

import fake_world
import pytest
from machine_world import World

from orchestrator import machine
from orchestrator.states import AnyState, Done
from orchestrator.transition import Clock


def ended(**changes: object) -> Done:
    world = World(fake_world.config(**changes))
    state: AnyState = machine.start("host")
    while not state.is_terminal:
        state = world.step(state)
    assert isinstance(state, Done)
    return state


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ("max_rounds", 2),
        ("max_steps", 1),
        ("max_measured_programs", 20),
        ("max_device_hours", 0.2 / 3600),
        ("max_gpu_hours", 2.0 / 3600),
    ],
)
def test_a_budget_ends_the_search_and_is_named(budget: str, limit: float) -> None:
    unlimited, done = ended().search, ended(budget={budget: limit}).search
    assert done.stopped_by.startswith(f"budget.{budget}: ")
    assert 0 < len(done.decisions) < len(unlimited.decisions)


@pytest.mark.parametrize(("budget", "more"), [("max_steps", 2), ("max_measured_programs", 1000)])
def test_more_of_the_budget_that_ended_it_goes_on(budget: str, more: int) -> None:
    done = ended(budget={budget: 1})
    assert machine.resume(done, fake_world.config(budget={budget: 1}), Clock(wall_s=1.0)) is None
    again = machine.resume(done, fake_world.config(budget={budget: more}), Clock(wall_s=1.0))
    assert again is not None and again.next_state.kind == "ranking"


def test_the_tuning_of_the_dense_network_is_not_the_searchs() -> None:
    """As ``max_hours``, all budgets begin when the dense network has been tuned."""
    done = ended(budget={"max_rounds": 1}).search
    dense = fake_world.tuned(fake_world.network().structure, "host")
    assert 0 < done.measured_programs < dense.measured_programs
    assert done.train_s == pytest.approx(1.0)


def test_a_latency_that_is_reached_ends_the_search() -> None:
    """A step of this world brings the network from 27 to some 10 ms."""
    free = ended().search
    prune = {"max_accuracy_drop": 0.03, "tasks_per_round": 1, "fine_tuned_per_round": 1}
    done = ended(prune={**prune, "latency_target_ms": 9.0}).search
    assert done.stopped_by.startswith("prune.latency_target_ms: ")
    assert done.current_ms <= 9.0
    assert done.accepted < free.accepted


def test_a_latency_that_is_out_of_reach_changes_nothing() -> None:
    prune = {"max_accuracy_drop": 0.03, "tasks_per_round": 1, "fine_tuned_per_round": 1}
    done = ended(prune={**prune, "latency_target_ms": 1e-6}).search
    assert done.stopped_by == ended().search.stopped_by
