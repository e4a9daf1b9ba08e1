"""The driver with workers and ledgers of its own process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import fake_world
import pytest
from driver_world import TWO, decisions, go, opening

import orchestrator.policies.retry as retry
from orchestrator.dispatch import Finished
from orchestrator.driver import run
from orchestrator.policies.retry import Failure
from orchestrator.run_folder import RunLocked, is_locked, locked
from orchestrator.states import AnyState
from orchestrator.store.base import LedgerError, LedgerFull
from orchestrator.store.memory import MemoryLedger
from orchestrator.store.reader import LEDGER, read_run
from orchestrator.store.sqlite import SqliteLedger
from schemas.record import WorkRecord
from schemas.work import CompareWork, ExportWork, FineTuneWork, PrepareWork, ScreenWork, Work


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_DELAY_S", {})


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    lines: list[str] = []
    workers = fake_world.FakeWorkers()
    record = run(fake_world.config(), tmp_path, opening(workers), report=lines.append)
    assert record.state == "done" and record.error == "" and record.started == 1
    assert workers.closed
    assert lines[0] == "host: preparing: begins"
    assert lines[-1].startswith("host: done: 1.")
    assert len(lines) == len(record.events)
    assert read_run(tmp_path) == record
    steps = record.targets[0].steps
    assert [step.accepted for step in steps].count(True) == 3
    accepted = next(step for step in steps if step.accepted)
    assert accepted.comparison is not None and accepted.screened_ms is not None
    assert record.targets[0].accuracy_floor == pytest.approx(0.94)
    assert record.wall_s > 0 and sum(record.phases_s.values()) <= record.wall_s + 0.1


def test_both_ledgers_lead_to_the_same_decisions(tmp_path: Path) -> None:
    one = go(tmp_path / "a")
    two = go(tmp_path / "b", ledger=MemoryLedger())
    assert decisions(one) == decisions(two)


def test_several_targets_share_their_training(tmp_path: Path) -> None:
    workers = fake_world.FakeWorkers()
    record = go(tmp_path, fake_world.config(targets=TWO), workers)
    assert [target.state for target in record.targets] == ["done", "done"]
    keys = [work.key for work in workers.executed]
    assert len(keys) == len(set(keys))
    assert sum(isinstance(work, PrepareWork) for work in workers.executed) == 1
    for kind in (ScreenWork, CompareWork, ExportWork):
        targets = {work.target for work in workers.executed if isinstance(work, kind)}
        assert targets == {"big", "small"}


class Crash(Exception):
    """Stands for the loss of the process."""


class CrashingLedger(SqliteLedger):
    """Loses its process at its n-th write, before or after the commit."""

    left = 0
    after = False

    def _maybe(self, is_after: bool) -> None:
        if is_after is self.after:
            self.left -= 1
            if self.left == 0:
                raise Crash

    def transition(
        self, target: str, expected: int, state: AnyState, message: str, at: float, wall_s: float
    ) -> int:
        self._maybe(False)
        sequence = super().transition(target, expected, state, message, at, wall_s)
        self._maybe(True)
        return sequence

    def add_work(self, *records: WorkRecord) -> int:
        self._maybe(False)
        added = super().add_work(*records)
        self._maybe(True)
        return added


@pytest.mark.parametrize("after", [False, True])
def test_a_run_goes_on_from_every_crash(tmp_path: Path, after: bool) -> None:
    calm = go(tmp_path / "calm")
    writes = len(calm.events) + len(calm.work)
    for number in range(1, writes + 1, 4):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        ledger = CrashingLedger(folder / LEDGER)
        ledger.left, ledger.after = number, after
        first = fake_world.FakeWorkers()
        with pytest.raises(Crash):
            go(folder, workers=first, ledger=ledger)
        assert first.closed
        stored = SqliteLedger(folder / LEDGER)
        finished = stored.finished_keys()
        stored.close()
        second = fake_world.FakeWorkers()
        record = go(folder, workers=second)
        assert decisions(record) == decisions(calm)
        assert not finished & {work.key for work in second.executed}


def test_a_lost_worker_is_tried_again_and_a_lost_device_given_up(tmp_path: Path) -> None:
    seen: list[str] = []

    def fault(work: Work) -> Failure | None:
        if isinstance(work, FineTuneWork) and seen.count("worker") < 2:
            seen.append("worker")
            return Failure(kind="worker_lost", message="killed")
        if isinstance(work, CompareWork) and seen.count("device") < 3:
            seen.append("device")
            return Failure(kind="device_lost", message="local-0 does not answer")
        return None

    workers = fake_world.FakeWorkers(fault=fault)
    record = go(tmp_path, workers=workers)
    assert seen == ["worker"] * 2 + ["device"] * 3
    assert (record.state, record.error) == ("failed", "local-0 does not answer")
    assert record.targets[0].steps == () and record.targets[0].state == "failed"
    done_before = {work.key for work in workers.executed}
    again = fake_world.FakeWorkers()
    record = go(tmp_path, workers=again)
    assert record.state == "done" and record.started == 2
    assert not done_before & {work.key for work in again.executed}
    assert decisions(record) == decisions(go(tmp_path / "calm"))


def test_one_targets_failure_leaves_the_other_alone(tmp_path: Path) -> None:
    def fault(work: Work) -> Failure | None:
        gone = isinstance(work, ScreenWork) and work.target == "big"
        return Failure(kind="user_error", message="targets[0]: no such key") if gone else None

    config = fake_world.config(targets=TWO)
    record = go(tmp_path, config, fake_world.FakeWorkers(fault=fault))
    assert [target.state for target in record.targets] == ["failed", "done"]
    assert (record.state, record.error) == ("failed", "targets[0]: no such key")
    assert record.wrong_input
    assert go(tmp_path, config).state == "done"


def test_the_first_signal_drains_and_saves(tmp_path: Path) -> None:
    def began(work: Work) -> None:
        if isinstance(work, FineTuneWork):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    workers = fake_world.FakeWorkers(began=began)
    record = go(tmp_path, workers=workers)
    assert signal.getsignal(signal.SIGTERM) == before
    assert record.state == "cancelled"
    assert isinstance(workers.executed[-1], FineTuneWork) and not workers.cancelled
    kept = {item.work.key for item in record.work}
    assert workers.executed[-1].key in kept
    again = fake_world.FakeWorkers()
    record = go(tmp_path, workers=again)
    assert record.state == "done"
    assert not kept & {work.key for work in again.executed}


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    class FullLedger(SqliteLedger):
        def add_work(self, *records: WorkRecord) -> int:
            if isinstance(records[0].work, CompareWork):
                raise LedgerFull("the disk is full")
            return super().add_work(*records)

    workers = fake_world.FakeWorkers()
    with pytest.raises(LedgerFull):
        go(tmp_path, workers=workers, ledger=FullLedger(tmp_path / LEDGER))
    assert workers.closed and read_run(tmp_path).state == "running"
    assert go(tmp_path).state == "done"


def test_an_error_of_closing_does_not_hide_what_went_wrong_before(tmp_path: Path) -> None:
    class Dying(fake_world.FakeWorkers):
        def wait(self, handles: object, timeout_s: float) -> list[Finished]:
            raise LedgerError("Ray has died")

        def close(self) -> None:
            raise ConnectionError("nobody answers")

    with pytest.raises(LedgerError, match="Ray has died"):
        go(tmp_path, workers=Dying())


def test_two_drivers_never_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(RunLocked, match="being worked on by process"):
            go(tmp_path)
    assert not is_locked(tmp_path)
    assert go(tmp_path).state == "done"
