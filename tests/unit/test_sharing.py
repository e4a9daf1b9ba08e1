"""What a run knows of other runs' programs, what it gives them, and that it does without."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_world
import pytest
from records_world import CONDITIONS, TARGET, failed, numbers, program, sample, store

from orchestrator.driver import run
from orchestrator.store.base import Ledger
from orchestrator.store.migrations import MIGRATIONS
from orchestrator.store.reader import LEDGER
from orchestrator.store.sharing import Sharing, SharingLedger, sharing_of

Open = Callable[..., SharingLedger]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
def open_run(tmp_path: Path, path: Path) -> Iterator[Open]:
    """Open the ledger of the run of that name; ``share`` is off for one that shares nothing."""
    opened = []

    def open_it(name: str, share: bool = True, takes: bool = True) -> SharingLedger:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        sharing = Sharing(path, 1e9, CONDITIONS, takes) if share else None
        opened.append(SharingLedger(folder / LEDGER, sharing))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


def known(ledger: Ledger, *task_ids: str) -> list[int]:
    return numbers(ledger.programs(list(task_ids) or ["task"], "m"))


class TestTaking:
    def test_a_run_begins_with_what_others_have_measured(self, open_run: Open) -> None:
        first = open_run("first")
        first.add_programs([program(2), program(1), program(7, task_id="another")])
        second = open_run("second")
        assert known(second) == [2, 1]
        assert [item.batch for item in second.programs(["task"], "m")] == ["shared", "shared"]
        assert known(second, "task", "another") == [2, 1, 7]

    def test_it_looks_at_the_store_once_for_each_task(self, open_run: Open) -> None:
        first, second = open_run("first"), open_run("second")
        first.add_programs([program(1)])
        assert known(second) == [1] and known(second, "empty") == []
        first.add_programs([program(2), program(3, task_id="empty")])
        assert known(second) == [1] and known(second, "empty") == []
        assert known(second, "task", "empty") == [1]
        second.close()
        again = open_run("second")
        assert known(again) == [1] and known(again, "empty") == []
        assert known(open_run("third"), "task", "empty") == [1, 2, 3]

    def test_a_run_that_shared_nothing_does_not_begin_to_in_its_middle(
        self, open_run: Open
    ) -> None:
        open_run("first").add_programs([program(1)])
        alone = open_run("alone", share=False)
        assert known(alone) == []
        alone.add_programs([program(2)])
        alone.close()
        resumed = open_run("alone")
        assert known(resumed) == [2]
        resumed.add_programs([program(3)])
        assert known(open_run("last")) == [1, 3]

    def test_a_ledger_of_before_goes_on_with_what_it_knew(
        self, open_run: Open, tmp_path: Path
    ) -> None:
        open_run("first").add_programs([program(1), program(2, task_id="new")])
        (tmp_path / "old").mkdir()
        db = sqlite3.connect(tmp_path / "old" / LEDGER)
        for statement in MIGRATIONS[0]:
            db.execute(statement)
        own = program(3)
        db.execute(
            "INSERT INTO program (program_id, device_model, task_id, program) VALUES (?, ?, ?, ?)",
            (own.program_id, own.device_model, own.task_id, own.model_dump_json()),
        )
        db.execute("PRAGMA user_version = 1")
        db.commit()
        db.close()
        old = open_run("old")
        assert known(old) == [3] and known(old, "new") == [2]

    def test_a_run_that_records_or_replays_takes_nothing_and_gives(self, open_run: Open) -> None:
        open_run("first").add_programs([program(1)])
        recording = open_run("recording", takes=False)
        assert known(recording) == []
        recording.add_programs([program(2)])
        assert known(open_run("last")) == [1, 2]


class TestGiving:
    def test_verdicts_are_shared_too(self, open_run: Open) -> None:
        first = open_run("first")
        first.add_programs([program(1), program(2), failed(3, "took longer than 5 s")])
        first.record_check(program(1, max_abs_error=1e-6))
        first.record_check(failed(2, "wrong result: differs by 1"))
        right, wrong = open_run("second").programs(["task"], "m")
        assert right.max_abs_error == 1e-6 and wrong.is_condemned

    def test_a_program_that_was_taken_may_be_checked(self, open_run: Open) -> None:
        open_run("first").add_programs([program(1)])
        second = open_run("second")
        (taken,) = second.programs(["task"], "m")
        second.record_check(taken.model_copy(update={"max_abs_error": 0.0}))
        assert second.programs(["task"], "m")[0].max_abs_error == 0.0
        assert open_run("third").programs(["task"], "m")[0].max_abs_error == 0.0


def begins_with(ledger: Ledger) -> list[int]:
    return numbers(ledger.samples("m", TARGET))


def give(ledger: Ledger, *given: int, task_id: str = "other") -> None:
    ledger.add_programs([program(number, task_id=task_id) for number in given])
    ledger.share_samples([sample(number, task_id) for number in given])


class TestCostModels:
    def test_they_begin_with_what_others_measured_of_other_tasks(self, open_run: Open) -> None:
        first = open_run("first")
        give(first, 1, 2)
        give(first, 3, 4, task_id="own")
        second = open_run("second")
        assert known(second, "own") == [3, 4]
        assert begins_with(second) == [1, 2]
        assert second.samples("m", TARGET)[0] == sample(1, "other")
        assert second.samples("m", "another target") == []

    def test_they_begin_with_the_same_after_a_restart(self, open_run: Open) -> None:
        first, second, empty = open_run("first"), open_run("second"), open_run("empty")
        assert begins_with(empty) == []
        give(first, 1, 2)
        assert begins_with(second) == [1, 2]
        give(first, 3, 4, task_id="new")
        assert begins_with(second) == [1, 2] and begins_with(empty) == []
        for ledger in (second, empty):
            ledger.close()
        assert begins_with(open_run("second")) == [1, 2] and begins_with(open_run("empty")) == []
        assert begins_with(open_run("third")) == [3, 4, 1, 2]

    def test_a_run_that_records_or_replays_or_shares_nothing_begins_with_none(
        self, open_run: Open
    ) -> None:
        give(open_run("first"), 1, 2)
        assert begins_with(open_run("recording", takes=False)) == []
        alone = open_run("alone", share=False)
        assert begins_with(alone) == []
        alone.close()
        assert begins_with(open_run("alone")) == [], "nor does it in its middle"

    def test_one_that_records_gives(self, open_run: Open) -> None:
        give(open_run("recording", takes=False), 1, 2)
        assert begins_with(open_run("last")) == [1, 2]

    def test_in_a_ledger_of_before_they_go_on_with_none(
        self, open_run: Open, tmp_path: Path
    ) -> None:
        give(open_run("first"), 1, 2)
        (tmp_path / "old").mkdir()
        db = sqlite3.connect(tmp_path / "old" / LEDGER)
        for statement in (*MIGRATIONS[0], *MIGRATIONS[1]):
            db.execute(statement)
        db.execute("INSERT INTO asked VALUES ('task', 'm')")
        db.execute("PRAGMA user_version = 2")
        db.commit()
        db.close()
        assert begins_with(open_run("old")) == []

    def test_a_store_that_fails_costs_no_more_than_the_samples(
        self, open_run: Open, path: Path
    ) -> None:
        ledger = open_run("run")
        assert ledger._store is not None
        ledger._store._db.execute("DROP TABLE sample")
        give(ledger, 1, 2)
        assert begins_with(ledger) == [] and known(ledger, "other") == [1, 2]
        (remark,) = ledger.remarks()
        assert str(path) in remark


class TestDoingWithout:
    def test_no_store_can_be_opened(self, open_run: Open, path: Path) -> None:
        path.write_text("not a store at all" * 100)
        ledger = open_run("run")
        ledger.add_programs([program(1)])
        assert known(ledger) == [1]
        (remark,) = ledger.remarks()
        assert str(path) in remark and "not a database" in remark
        assert "goes on without sharing" in remark and "cprune clean --records" in remark

    def test_the_folder_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        sharing = Sharing(tmp_path / "file" / "cprune" / "records", 1e9, CONDITIONS, True)
        ledger = SharingLedger(tmp_path / LEDGER, sharing)
        ledger.add_programs([program(1)])
        assert known(ledger) == [1]
        assert "Not a directory" in ledger.remarks()[0]
        ledger.close()

    def test_there_is_no_place_for_one(self, tmp_path: Path) -> None:
        sharing = Sharing(None, 1e9, CONDITIONS, True, problem="there is no home")
        ledger = SharingLedger(tmp_path / LEDGER, sharing)
        assert known(ledger) == [] and "there is no home" in ledger.remarks()[0]
        ledger.close()

    def test_it_fails_in_the_middle_of_a_run_and_is_told_of_once(
        self, open_run: Open, path: Path
    ) -> None:
        ledger = open_run("run")
        ledger.add_programs([program(1)])
        assert ledger.remarks() == [] and ledger._store is not None
        pages = ledger._store._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._store._db.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(2, 100):
            ledger.add_programs([program(number)])
        assert known(ledger) == list(range(1, 100))
        (remark,) = ledger.remarks()
        assert "full" in remark
        kept = store(path)
        assert 1 in numbers(kept.take(["task"], "m")) and kept.extent()[0] < 99
        kept.close()

    def test_what_failed_when_it_was_asked_is_not_asked_again(
        self, open_run: Open, path: Path
    ) -> None:
        path.write_text("not a store at all" * 100)
        assert known(open_run("run")) == []
        path.unlink()
        open_run("other").add_programs([program(1)])
        again = open_run("run")
        assert known(again) == [] and again.remarks() == []

    def test_the_driver_says_it_once(self, open_run: Open, path: Path, tmp_path: Path) -> None:
        path.write_text("not a store at all" * 100)
        ledger, told = open_run("run"), list[str]()
        workers = fake_world.FakeWorkers()
        record = run(
            fake_world.config(), tmp_path / "run", lambda *_: (ledger, workers), report=told.append
        )
        assert record.state == "done"
        assert sum("cannot be used" in line for line in told) == 1


class TestConfiguration:
    def test_what_a_configuration_shares(self, tmp_path: Path) -> None:
        assert sharing_of(fake_world.config(records={"share": False})) is None
        given = {"path": str(tmp_path / "r"), "max_mb": 2}
        sharing = sharing_of(fake_world.config(records=given))
        assert sharing is not None and sharing.takes
        assert (sharing.path, sharing.max_bytes) == (tmp_path / "r", 2e6)
        target = {"name": "host", "device": "local", "recording": "answers.jsonl"}
        recording = sharing_of(fake_world.config(targets=[target]))
        assert recording is not None and not recording.takes

    def test_without_a_home_it_has_no_path_and_says_why(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nowhere() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", nowhere)
        sharing = sharing_of(fake_world.config())
        assert sharing is not None and sharing.path is None
        assert "no place" in sharing.problem
