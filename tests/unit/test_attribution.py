"""What each call takes inside a network: watched on the device, then given to the tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fake_world
import pytest

from device_agents import attribution
from schemas.network import Structure
from workers.measuring.gauge import Attribution
from workers.tuning.libraries import in_model

CALLS = [("vm.builtin.reshape", 0.01), ("conv", 4.0), ("vm.builtin.null_value", 0.0), ("add", 0.5)]

HANDED_OVER_NS = 700
"""What it takes to hand an argument to the watch."""


class Machine:
    """A virtual machine whose calls take known times on a clock of its own, in milliseconds."""

    def __init__(self, slower_after: int | None = None) -> None:
        """After so many runs every call takes twice as long."""
        self._slower_after = slower_after
        self._watch: Callable[..., int] | None = None
        self._now_ns = 0
        self.invoked = 0

    def perf_counter_ns(self) -> int:
        """Looking at the clock takes a while too."""
        self._now_ns += 150
        return self._now_ns

    def __getitem__(self, name: str) -> Callable[..., None]:
        return {"invoke_stateful": self._invoke, "set_instrument": self._set}[name]

    def _set(self, watch: Callable[..., int] | None) -> None:
        self._watch = watch

    def _invoke(self, name: str) -> None:
        assert name == "main"
        self.invoked += 1
        is_slow = self._slower_after is not None and self.invoked > self._slower_after
        for function, latency_ms in CALLS:
            arguments = ["argument"] * len(function)
            if self._watch is not None:
                self._now_ns += HANDED_OVER_NS * len(arguments)
                assert self._watch(None, function, True, None, *arguments) == 0
            self._now_ns += int(latency_ms * 1e6) * (2 if is_slow else 1)
            if self._watch is not None:
                self._now_ns += HANDED_OVER_NS * len(arguments)
                assert self._watch(None, function, False, None, *arguments) == 0


def test_calls_are_timed_in_their_order_without_the_machines_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    monkeypatch.setattr(attribution, "time", machine)
    found = json.loads(attribution.attribute(machine))
    assert [name for name, _ in found["calls"]] == ["conv", "add"]
    times = dict(found["calls"])
    assert times["conv"] == pytest.approx(4.0), "what the watching takes is taken off"
    assert times["add"] == pytest.approx(0.5)
    assert found["model_ms"] == pytest.approx(4.51, abs=0.001)
    assert 200 < machine.invoked < 400, "about 0.6 seconds, twice"


def test_a_device_that_slows_down_changes_calls_and_network_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(slower_after=90)
    monkeypatch.setattr(attribution, "time", machine)
    found = json.loads(attribution.attribute(machine))
    assert sum(ms for _, ms in found["calls"]) == pytest.approx(found["model_ms"], rel=0.02)


def functions(tuned: Any) -> list[str]:
    return [f"function{subgraph.index}" for subgraph in tuned.table.subgraphs]


def test_a_tasks_cost_is_the_mean_of_its_calls() -> None:
    tuned = fake_world.tuned(Structure(), "host")
    names = functions(tuned)
    calls = [(f"{name}_prepacked", 1.0 + position) for position, name in enumerate(names)]
    found = in_model(tuned, names, Attribution(100.0, (*calls, ("layout_transform", 7.0))))
    assert found.model_ms == 100.0
    assert found.sum_ms == pytest.approx(sum(ms for _, ms in calls))
    for entry in found.latencies:
        own = [
            1.0 + position
            for position, subgraph in enumerate(tuned.table.subgraphs)
            if subgraph.task_id == entry.task_id
        ]
        assert entry.in_model_ms == entry.cost_ms == pytest.approx(sum(own) / len(own))
        assert entry.latency_ms == tuned.latency(entry.task_id).latency_ms


def test_a_task_that_was_not_seen_costs_what_its_program_takes_unless_it_has_no_work() -> None:
    tuned = fake_world.tuned(Structure(), "host")
    task = tuned.table.tasks[0].model_copy(update={"kind": "other"})
    table = tuned.table.model_copy(update={"tasks": (task, *tuned.table.tasks[1:])})
    tuned = tuned.model_copy(update={"table": table})
    found = in_model(tuned, functions(tuned), Attribution(1.0, ()))
    assert {entry.task_id: entry.in_model_ms for entry in found.latencies} == {
        each.task_id: 0.0 if each.task_id == task.task_id else None for each in table.tasks
    }
