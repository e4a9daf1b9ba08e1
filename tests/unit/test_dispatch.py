"""The dispatcher alone: room, deadlines, cancelling; and the signals that lead to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import fake_world

from orchestrator.dispatch import GRACE_S, Dispatcher, deadline_s
from orchestrator.interrupts import EXIT_CODE, Interrupts
from orchestrator.policies.retry import Failure
from orchestrator.store.memory import MemoryLedger
from schemas.network import Structure
from schemas.work import Candidate, CompareWork, FineTuneWork, PrepareWork, ScreenWork, Work

ROOT = Path(__file__).parents[2]


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
    dispatcher.want_only([PrepareWork()])
    dispatcher._begin()
    assert dispatcher.busy
    dispatcher.cancel()
    assert workers.cancelled == [PrepareWork()] and not dispatcher.busy


def test_work_that_never_answers_is_given_up() -> None:
    class Silent(fake_world.FakeWorkers):
        def wait(self, handles: object, timeout_s: float) -> list[object]:  # type: ignore[override]
            now[0] += 100_000.0
            return []

    now = [0.0]
    workers, told = Silent(), list[str]()
    dispatcher = Dispatcher(
        workers, MemoryLedger(), fake_world.config(), told.append, clock=lambda: now[0]
    )
    dispatcher.want_only([PrepareWork()])
    assert dispatcher.poll(1.0) == []
    (settled,) = dispatcher.poll(1.0)
    assert "prepare did not answer within 172860 s" in settled.error
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
    dispatcher.want_only([*training, *device, *training])
    dispatcher._begin()
    flying = list(workers._flying.values())
    assert flying == [(training[0],), (training[1],), (device[0],), (device[2],)]


def screenings(target: str, *widths: int) -> list[Work]:
    parent = fake_world.network()
    return [
        ScreenWork(
            target=target,
            candidate=Candidate(
                candidate_id=f"deep {width}",
                task_id="task",
                task_name="task",
                parent=parent,
                structure=Structure(widths={"deep": width}),
                groups=("deep",),
                widths_before=(32,),
                widths_after=(width,),
            ),
        )
        for width in widths
    ]


def test_screenings_that_a_target_waits_for_are_done_together() -> None:
    workers, ledger = fake_world.FakeWorkers(), MemoryLedger()
    now = [0.0]
    dispatcher = Dispatcher(workers, ledger, fake_world.config(), quiet, clock=lambda: now[0])
    ours, theirs = screenings("a", 24, 16, 8), screenings("b", 24)
    dispatcher.want_only([ours[0], *theirs, *ours[1:]])
    dispatcher._begin()
    assert workers.together == [tuple(ours), tuple(theirs)]
    now[0] = 6.0
    settled = dispatcher.poll(1.0) + dispatcher.poll(1.0)
    assert {item.key for item in settled} == {work.key for work in (*ours, *theirs)}
    assert [item.seconds for item in ledger.all_work()] == [2.0, 2.0, 2.0, 6.0]


def test_screenings_that_fail_together_are_tried_together_again() -> None:
    failing = [True]

    def fault(work: Work) -> Failure | None:
        return Failure(kind="worker_lost", message="killed") if failing[0] else None

    workers, told = fake_world.FakeWorkers(fault=fault), list[str]()
    now = [0.0]
    dispatcher = Dispatcher(
        workers, MemoryLedger(), fake_world.config(), told.append, clock=lambda: now[0]
    )
    works = screenings("a", 24, 16)
    dispatcher.want_only(works)
    assert dispatcher.poll(1.0) == []
    assert len(told) == 1
    failing[0] = False
    dispatcher.want_only(works)
    now[0] = 1000.0
    assert {item.key for item in dispatcher.poll(1.0)} == {work.key for work in works}
    assert workers.together == [tuple(works)] * 2


def test_no_screening_begins_while_another_of_its_target_waits_to_be_tried_again() -> None:
    """What they find depends on which they are."""
    workers = fake_world.FakeWorkers(fault=lambda work: Failure(kind="device_lost", message="gone"))
    now = [0.0]
    dispatcher = Dispatcher(
        workers, MemoryLedger(), fake_world.config(), quiet, clock=lambda: now[0]
    )
    first, second = screenings("a", 24, 16)
    dispatcher.want_only([first])
    dispatcher.poll(1.0)
    dispatcher.want_only([first, second])
    dispatcher._begin()
    assert not dispatcher.busy
    now[0] = 1000.0
    dispatcher._begin()
    assert workers.together == [(first,), (first, second)]


def test_screenings_have_the_time_of_all_of_them() -> None:
    class Silent(fake_world.FakeWorkers):
        def wait(self, handles: object, timeout_s: float) -> list[object]:  # type: ignore[override]
            return []

    now = [0.0]
    workers = Silent()
    dispatcher = Dispatcher(
        workers, MemoryLedger(), fake_world.config(), quiet, clock=lambda: now[0]
    )
    works = screenings("a", 24, 16)
    dispatcher.want_only(works)
    limit_s = sum(deadline_s(work, fake_world.config()) for work in works)
    for now[0] in (0.0, limit_s):
        assert dispatcher.poll(1.0) == []
    now[0] = limit_s + 1.0
    assert [item.key for item in dispatcher.poll(1.0)] == [work.key for work in works]
    assert workers.cancelled == works


def test_what_nobody_wants_of_screenings_done_together_is_done_with_the_rest() -> None:
    workers = fake_world.FakeWorkers()
    dispatcher = Dispatcher(workers, MemoryLedger(), fake_world.config(), quiet)
    works = screenings("a", 24, 16)
    dispatcher.want_only(works)
    dispatcher._begin()
    dispatcher.abandon(works[:1])
    assert dispatcher.busy and not workers.cancelled
    dispatcher.abandon([])
    assert not dispatcher.busy and workers.cancelled == works


def test_a_trainings_deadline_leaves_time_to_wait_for_the_others() -> None:
    """Of two that may be in flight one waits in Ray where there is one GPU."""
    config = fake_world.config(train={"timeout_s": 100.0}, fine_tune={"max_parallel": 2})
    assert deadline_s(PrepareWork(), config) == 200.0 + GRACE_S


WAITER = """
import hashlib, sys
from orchestrator.interrupts import Interrupts

with Interrupts(lambda text: print(text, flush=True)):
    print("waiting", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)  # one step, without Python's own lock
"""


def test_three_equal_signals_leave_at_once_though_the_main_thread_waits() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as waiter:
        assert waiter.stdout is not None
        for expected in ("waiting", "stopping", "cancelling"):
            assert waiter.stdout.readline().startswith(expected)
            waiter.send_signal(signal.SIGINT)
        try:
            assert waiter.wait(60) == EXIT_CODE
        finally:
            waiter.kill()


def test_the_handlers_before_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert signals.count == 2
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.set_wakeup_fd(-1) == -1
