"""What is screened while devices wait for a training."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fake_world
import pytest
from driver_world import decisions, go
from machine_world import CLOCK, World

from orchestrator import machine
from orchestrator.ahead import Foresight, ahead_of
from orchestrator.dispatch import Dispatcher, Finished
from orchestrator.policies.retry import Failure
from orchestrator.states import AnyState, FineTuning, Screening
from orchestrator.store.memory import MemoryLedger
from schemas.config import RunConfig
from schemas.work import FineTuneWork, Outcome, PrepareWork, ScreenWork, UniformWork, Work

PHONES = [{"name": "host", "device": "tracker", "tracker_port": 9190}]


def config(device: str = "tracker", **prune: object) -> RunConfig:
    changed = {"max_accuracy_drop": 0.03, "tasks_per_round": 1, "fine_tuned_per_round": 1, **prune}
    return fake_world.config(prune=changed, **({"targets": PHONES} if device == "tracker" else {}))


def walk(world: World) -> list[AnyState]:
    states: list[AnyState] = [machine.start("host")]
    while not states[-1].is_terminal:
        states.append(world.step(states[-1]))
    return states


def keys(works: Sequence[Work]) -> set[str]:
    return {work.key for work in works}


def foreseen(world: World, state: AnyState) -> tuple[Work, ...]:
    """As it was known in that state: nothing of its own trainings."""
    own = keys(machine.work_of(state, world.config))
    known = {key: outcome for key, outcome in world.outcomes.items() if key not in own}

    def read(wanted: object) -> dict[str, Outcome]:
        return {key: known[key] for key in wanted if key in known}  # type: ignore[attr-defined]

    return ahead_of(state, read, world.config, CLOCK)


def test_what_follows_a_loss_is_what_was_screened_ahead() -> None:
    world = World(config())
    states = walk(world)
    followed = [
        (foreseen(world, state), machine.work_of(after, world.config))
        for state, between, after in zip(states, states[1:], states[2:], strict=False)
        if isinstance(state, FineTuning)
        and between.kind == "proposing"
        and isinstance(after, Screening)
    ]
    assert len(followed) >= 2
    assert all(keys(ahead) == keys(works) for ahead, works in followed)


@pytest.mark.parametrize("device", ["local", "tracker"])
def test_nothing_is_screened_ahead_on_the_cores_that_train(device: str) -> None:
    world = World(config(device))
    ahead = [foreseen(world, state) for state in walk(world)]
    assert any(ahead) == (device == "tracker")


@pytest.mark.parametrize("policy", ["uniform", "netadapt", "original"])
def test_policies_that_do_not_screen_by_transplants_get_nothing_ahead(policy: str) -> None:
    world = World(config(policy=policy))
    assert not any(foreseen(world, state) for state in walk(world))


@dataclass
class Watched(fake_world.FakeWorkers):
    """Answers for the device first; knows what was begun beside a training."""

    ahead: list[str] = field(default_factory=list)

    def submit(self, works: Sequence[Work]) -> Hashable:
        if isinstance(works[0], ScreenWork) and self._trains():
            self.ahead += [work.key for work in works]
        return super().submit(works)

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Finished]:
        slow = (FineTuneWork, PrepareWork, UniformWork)
        return super().wait(
            sorted(handles, key=lambda handle: isinstance(self._flying[handle][0], slow)), timeout_s
        )

    def _trains(self) -> bool:
        return any(isinstance(works[0], FineTuneWork) for works in self._flying.values())


def test_a_run_on_other_devices_screens_while_it_trains(tmp_path: Path) -> None:
    alone, beside = Watched(), Watched()
    local = go(tmp_path / "local", config("local"), alone)
    remote = go(tmp_path / "remote", config(), beside)
    assert not alone.ahead and len(beside.ahead) >= 2
    assert len(set(beside.ahead)) == len(beside.ahead)
    assert decisions(remote) == decisions(local)
    assert remote.state == "done"


def test_what_fails_ahead_of_its_time_stops_nothing(tmp_path: Path) -> None:
    failed: set[str] = set()

    def fault(work: Work) -> Failure | None:
        if not isinstance(work, ScreenWork) or not workers._trains() or work.key in failed:
            return None
        failed.add(work.key)
        return Failure(kind="user_error", message="no such device")

    workers = Watched(fault=fault)
    record = go(tmp_path, config(), workers)
    assert record.state == "done" and failed
    assert not [work for work in workers.cancelled if isinstance(work, FineTuneWork)]
    assert decisions(record) == decisions(go(tmp_path / "calm", config("local"), Watched()))


def test_what_is_not_wanted_any_more_is_not_begun() -> None:
    workers = Watched()
    dispatcher = Dispatcher(workers, MemoryLedger(), config(), lambda text: None)
    world = World(config())
    state = next(state for state in walk(world) if isinstance(state, FineTuning))
    training, ahead = machine.work_of(state, world.config), foreseen(world, state)
    dispatcher.want_only([*training, *ahead])
    dispatcher.want_only(training)
    dispatcher._begin()
    assert workers.together == [(work,) for work in training]


def test_it_is_found_out_once_for_each_state() -> None:
    world = World(config())
    state = next(state for state in walk(world) if isinstance(state, FineTuning))
    asked: list[object] = []

    def read(wanted: object) -> dict[str, Outcome]:
        asked.append(wanted)
        return world.outcomes

    foresight = Foresight(world.config, read)
    first = foresight.works(state, 7, CLOCK)
    assert first and foresight.works(state, 7, CLOCK) == first and len(asked) == 1
    foresight.give_up([first[0].key])
    assert foresight.works(state, 7, CLOCK) == first[1:]
    foresight.works(state, 8, CLOCK)
    assert len(asked) == 2
