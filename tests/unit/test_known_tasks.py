"""Tasks in the record store: what models of latency know before a run has measured anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from records_world import CONDITIONS, TARGET, ageing_store, known_task, program, store

from orchestrator.store import known_tasks
from orchestrator.store.reader import LEDGER
from orchestrator.store.records import RecordStore
from orchestrator.store.sharing import Sharing, SharingLedger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
def shared(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordStore]:
    opened = ageing_store(path, monkeypatch)
    yield opened
    opened.close()


def give(shared: RecordStore, task_id: str, latency_ms: float = 1.0) -> None:
    shared.keep([program(1, task_id=task_id)])
    shared.keep_tasks("m", TARGET, [known_task(task_id, latency_ms)])


def taken(shared: RecordStore, *without: str) -> list[str]:
    return [task.task_id for task in shared.take_tasks("m", TARGET, without)]


class TestStore:
    def test_it_gives_out_what_it_took_the_task_used_last_first(self, shared: RecordStore) -> None:
        for task_id in ("one", "two", "three"):
            give(shared, task_id)
        assert shared.take_tasks("m", TARGET, ["two", "none"]) == [
            known_task("three"),
            known_task("one"),
        ]
        shared.take(["one"], "m")
        assert taken(shared) == ["one", "three", "two"]

    def test_those_of_another_key_are_not_seen(self, path: Path, shared: RecordStore) -> None:
        give(shared, "one")
        assert shared.take_tasks("another model", TARGET, ()) == []
        assert shared.take_tasks("m", "another target", ()) == []
        other = store(path, conditions="tools of tomorrow")
        assert taken(other) == []
        other.close()

    def test_the_least_latency_counts(self, shared: RecordStore) -> None:
        for latency_ms in (2.0, 1.5, 3.0):
            give(shared, "one", latency_ms)
        assert shared.take_tasks("m", TARGET, ()) == [known_task("one", 1.5)]

    def test_a_task_without_programs_is_not_kept(self, shared: RecordStore) -> None:
        shared.keep_tasks("m", TARGET, [known_task("one")])
        assert taken(shared) == []

    def test_a_task_goes_with_the_last_of_its_programs(self, path: Path) -> None:
        small = store(path, max_bytes=20_000)
        for number in range(40):
            small.keep([program(number, task_id=f"task-{number}")])
            small.keep_tasks("m", TARGET, [known_task(f"task-{number}")])
        count, tasks = small.extent()
        assert 5 < count == tasks == len(taken(small)) < 20
        small.clear()
        assert taken(small) == []
        small.close()

    def test_no_more_are_taken_than_a_model_learns_from(
        self, shared: RecordStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(known_tasks, "MOST_TASKS", 2)
        for task_id in ("one", "two", "three"):
            give(shared, task_id)
        assert taken(shared) == ["three", "two"]


class TestRuns:
    @staticmethod
    def run(folder: Path, path: Path, *, takes: bool = True, shares: bool = True) -> SharingLedger:
        folder.mkdir()
        sharing = Sharing(path, 1e9, CONDITIONS, takes) if shares else None
        return SharingLedger(folder / LEDGER, sharing)

    def test_a_run_knows_what_earlier_ones_measured(self, tmp_path: Path, path: Path) -> None:
        first = self.run(tmp_path / "first", path)
        first.add_programs([program(1)])
        first.share_tasks("m", TARGET, [known_task()])
        first.close()
        second = self.run(tmp_path / "second", path)
        assert second.known_tasks("m", TARGET, []) == [known_task()]
        assert second.known_tasks("m", TARGET, ["task"]) == []
        second.close()

    @pytest.mark.parametrize("how", [{"takes": False}, {"shares": False}])
    def test_one_that_records_or_shares_nothing_knows_nothing(
        self, how: dict[str, bool], tmp_path: Path, path: Path, shared: RecordStore
    ) -> None:
        give(shared, "task")
        alone = self.run(tmp_path / "alone", path, **how)
        assert alone.known_tasks("m", TARGET, []) == []
        alone.share_tasks("m", TARGET, [known_task("task", 0.5)])
        known = shared.take_tasks("m", TARGET, ())
        assert known == [known_task("task", 0.5 if how.get("shares", True) else 1.0)]
        alone.close()

    def test_a_store_that_fails_costs_a_remark(self, tmp_path: Path, path: Path) -> None:
        run = self.run(tmp_path / "run", path)
        assert run._store is not None
        run._store._db.execute("DROP TABLE task")
        run.share_tasks("m", TARGET, [known_task()])
        assert run.known_tasks("m", TARGET, []) == []
        (remark,) = run.remarks()
        assert "goes on without sharing records" in remark
        run.close()
