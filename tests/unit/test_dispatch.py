"""The dispatcher alone: room, deadlines, cancelling."""

from __future__ import annotations

import fake_world

from orchestrator.dispatch import Dispatcher
from orchestrator.interrupts import EXIT_CODE, Interrupts
from orchestrator.store.memory import MemoryLedger
from schemas.work import CompareWork, FineTuneWork, PrepareWork


def quiet(text: str) -> None:
    pass


def test_the_second_signal_cancels_and_the_third_leaves() -> None:
    left: list[int] = []
    told: list[str] = []
    signals = Interrupts(told.append, left.append)
    for _ in range(3):
        signals.notice()
    assert left == [EXIT_CODE] and len(told) == 2
    ledger, workers = MemoryLedger(), fake_world.FakeWorkers()
    dispatcher = Dispatcher(workers, ledger, fake_world.config(), quiet)
    dispatcher.want([PrepareWork()])
    dispatcher._begin()
    assert dispatcher.busy
    dispatcher.cancel()
    assert workers.cancelled == [PrepareWork()] and not dispatcher.busy


def test_work_that_never_answers_is_given_up() -> None:
    class Silent(fake_world.FakeWorkers):
        def wait(self, handles: object, timeout_s: float) -> list[object]:  # type: ignore[override]
            now[0] += 50_000.0
            return []

    now = [0.0]
    workers, told = Silent(), list[str]()
    dispatcher = Dispatcher(
        workers, MemoryLedger(), fake_world.config(), told.append, clock=lambda: now[0]
    )
    dispatcher.want([PrepareWork()])
    assert dispatcher.poll(1.0) == []
    (settled,) = dispatcher.poll(1.0)
    assert "prepare did not answer within 86460 s" in settled.error
    assert workers.cancelled == [PrepareWork()]


def test_trainings_run_side_by_side_and_device_work_one_by_one() -> None:
    workers = fake_world.FakeWorkers()
    dispatcher = Dispatcher(workers, MemoryLedger(), fake_world.config(), quiet)
    parent = fake_world.network()
    training = [
        FineTuneWork(parent=parent, structure=parent.structure, epochs=n, learning_rate=0.1)
        for n in range(3)
    ]
    device = [
        CompareWork(target=target, reference=parent, candidate=parent, label=label)
        for target in ("a", "b")
        for label in ("1", "2")
    ]
    dispatcher.want([*training, *device, *training])
    dispatcher._begin()
    flying = list(workers._flying.values())
    assert flying == [training[0], training[1], device[0], device[2]]
