"""One contract for every ledger; and what only a file has to stand."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_world
import pytest

from orchestrator.machine import start
from orchestrator.states import Done, Preparing, Tuning
from orchestrator.store.base import (
    Ledger,
    LedgerDamaged,
    LedgerError,
    LedgerFull,
    LedgerNotBegun,
    StaleSequence,
)
from orchestrator.store.memory import MemoryLedger
from orchestrator.store.reader import LEDGER, NoRun, NotBegun, read_run, record_of
from orchestrator.store.sharing import Sharing, SharingLedger
from orchestrator.store.sqlite import SqliteLedger
from orchestrator.transition import IllegalTransition
from schemas.record import WorkRecord
from schemas.table import WRONG_RESULT, Program, Sample
from schemas.work import FineTuneWork, PrepareWork, UniformWork, Work

Open = Callable[[], Ledger]


@pytest.fixture(params=["sqlite", "sharing", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    path = tmp_path / LEDGER
    opened: dict[str, Callable[[], Ledger]] = {
        "sqlite": lambda: SqliteLedger(path),
        "sharing": lambda: SharingLedger(path, Sharing(tmp_path / "records", 1e9, "now", True)),
        "memory": MemoryLedger,
    }
    ledger = opened[request.param]()
    yield ledger
    ledger.close()


def tuning() -> Tuning:
    return Tuning(target="host", search=fake_world.search())


def record(work: Work | None = None, seconds: float = 1.0) -> WorkRecord:
    item = work or PrepareWork()
    outcome = fake_world.outcome_of(item)
    return WorkRecord(work=item, outcome=outcome, finished_at=5.0, seconds=seconds)


def program(number: int, task_id: str = "task", device_model: str = "m") -> Program:
    return Program(
        program_id=f"program-{number}",
        task_id=task_id,
        device_model=device_model,
        trace="[]",
        source="search",
        measurement=fake_world.measurement(float(number + 1)),
    )


def sample(number: int) -> Sample:
    return Sample(
        program_id=f"program-{number}",
        task_id="of another network",
        device_model="m",
        target="t",
        latency_ms=float(number + 1),
        features=bytes([number, 0, 255]),
    )


class TestContract:
    def test_a_start_is_counted_once(self, ledger: Ledger) -> None:
        config = fake_world.config()
        assert ledger.info() is None
        assert ledger.start("a", config, {"ray": "2"}).started == 1
        assert ledger.start("a", config, {"ray": "2"}).started == 1
        info = ledger.start("b", config, {"ray": "3"})
        assert (info.started, info.versions, info.config) == (2, {"ray": "3"}, config)

    def test_time_only_grows(self, ledger: Ledger) -> None:
        ledger.start("a", fake_world.config(), {})
        for wall_s in (3.0, 7.5, 2.0):
            ledger.keep_time(wall_s)
        info = ledger.info()
        assert info is not None and info.wall_s == 7.5

    def test_a_transition_is_an_event_and_the_current_state(self, ledger: Ledger) -> None:
        first = ledger.transition("host", 0, start("host"), "begins", 1.0, 0.5)
        second = ledger.transition("host", first, tuning(), "floor", 2.0, 1.5)
        standing = ledger.standings()["host"]
        assert (standing.sequence, standing.previous) == (second, first)
        assert standing.state == tuning()
        told = [(event.kind, event.message, event.at, event.wall_s) for event in ledger.events()]
        assert told == [("preparing", "begins", 1.0, 0.5), ("tuning", "floor", 2.0, 1.5)]
        assert [event.sequence for event in ledger.events(after=first)] == [second]

    def test_a_transition_compares_before_it_sets(self, ledger: Ledger) -> None:
        first = ledger.transition("host", 0, start("host"), "", 1.0, 0.0)
        ledger.transition("other", 0, start("other"), "", 1.0, 0.0)
        with pytest.raises(StaleSequence, match="host"):
            ledger.transition("host", first + 1, tuning(), "", 2.0, 0.0)
        assert ledger.standings()["host"].state == start("host")
        assert len(ledger.events()) == 2

    def test_repeating_a_transition_is_no_second_event(self, ledger: Ledger) -> None:
        first = ledger.transition("host", 0, start("host"), "", 1.0, 0.0)
        second = ledger.transition("host", first, tuning(), "", 2.0, 0.0)
        assert ledger.transition("host", first, tuning(), "", 3.0, 0.0) == second
        assert len(ledger.events()) == 2

    def test_an_undeclared_transition_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(IllegalTransition, match="begins with preparing"):
            ledger.transition("host", 0, tuning(), "", 1.0, 0.0)
        first = ledger.transition("host", 0, start("host"), "", 1.0, 0.0)
        done = Done(target="host", search=fake_world.search(), final=fake_world.network())
        with pytest.raises(IllegalTransition, match="preparing may not be followed by done"):
            ledger.transition("host", first, done, "", 2.0, 0.0)
        assert isinstance(ledger.standings()["host"].state, Preparing)
        assert len(ledger.events()) == 1

    def test_work_is_stored_once(self, ledger: Ledger) -> None:
        assert ledger.add_work(record(seconds=1.0)) == 1
        assert ledger.add_work(record(seconds=9.0)) == 0
        assert [item.seconds for item in ledger.all_work()] == [1.0]
        assert ledger.add_work(record(seconds=9.0), record(UniformWork(fraction=0.5))) == 1
        assert sorted(item.seconds for item in ledger.all_work()) == [1.0, 1.0]
        uniform = UniformWork(fraction=0.5).key
        key = PrepareWork().key
        assert ledger.finished_keys() == {key, uniform}
        assert ledger.outcomes([key, "unknown"]) == {key: record().outcome}

    def test_programs_are_found_by_task_and_device(self, ledger: Ledger) -> None:
        ledger.add_programs([program(2), program(1), program(3, task_id="another")])
        ledger.add_programs([program(1), program(4, device_model="n")])
        assert [item.program_id for item in ledger.programs(["task"], "m")] == [
            "program-2",
            "program-1",
        ]
        assert len(ledger.programs(["task", "another"], "m")) == 3
        assert ledger.programs([], "m") == []

    def test_programs_that_computed_something_else_are_found(self, ledger: Ledger) -> None:
        wrong = program(2).model_copy(
            update={"measurement": None, "error": f"{WRONG_RESULT}: differs by 1"}
        )
        slow = program(3).model_copy(update={"measurement": None, "error": "took too long"})
        ledger.add_programs([program(1), program(2), slow])
        assert ledger.condemned() == []
        ledger.record_check(wrong)
        assert ledger.condemned() == [wrong]
        ledger.start("a", fake_world.config(targets=[{"name": "host"}]), {})
        assert record_of(ledger).condemned == (wrong,)

    def test_what_a_cost_model_begins_with_is_noted_once(self, ledger: Ledger) -> None:
        ledger.keep_samples("m", "t", [sample(2), sample(1)])
        ledger.keep_samples("m", "t", [sample(3)])
        assert ledger.samples("m", "t") == [sample(2), sample(1)]
        assert ledger.samples("m", "another target") == []
        assert ledger.samples("another model", "t") == []

    def test_nothing_is_something_to_begin_with(self, ledger: Ledger) -> None:
        ledger.keep_samples("m", "t", [])
        ledger.keep_samples("m", "t", [sample(1)])
        assert ledger.samples("m", "t") == []

    def test_without_other_runs_no_task_is_known(self, ledger: Ledger) -> None:
        ledger.share_tasks("m", "t", [])
        assert ledger.known_tasks("m", "t", []) == []

    def test_giving_samples_to_others_changes_nothing_here(self, ledger: Ledger) -> None:
        ledger.share_samples([sample(1)])
        assert ledger.samples("m", "t") == []

    def test_many_keys_at_once(self, ledger: Ledger) -> None:
        ledger.add_programs([program(number, task_id=f"t{number}") for number in range(1200)])
        names = [f"t{number}" for number in range(1200)]
        assert len(ledger.programs(names, "m")) == 1200

    def test_the_record_of_a_begun_run(self, ledger: Ledger) -> None:
        with pytest.raises(NotBegun):
            record_of(ledger)
        ledger.start("a", fake_world.config(targets=[{"name": "host"}]), {})
        first = ledger.transition("host", 0, start("host"), "", 1.0, 2.0)
        ledger.transition("host", first, tuning(), "", 2.0, 5.0)
        ledger.keep_time(9.0)
        found = record_of(ledger)
        assert (found.state, found.error, found.started) == ("running", "", 1)
        assert found.phases_s == {"preparing": 3.0, "tuning": 4.0}
        assert found.targets[0].accuracy_floor == 0.9


class TestFile:
    def test_it_opens_again_as_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / LEDGER
        before = SqliteLedger(path)
        before.start("a", fake_world.config(), {})
        before.transition("host", 0, start("host"), "begins", 1.0, 0.0)
        before.add_work(record())
        before.add_programs([program(1)])
        before.keep_samples("m", "t", [sample(1)])
        before.close()
        after = SqliteLedger(path)
        assert after.info() is not None
        assert after.standings()["host"].state == start("host")
        assert after.finished_keys() == {PrepareWork().key}
        assert after.programs(["task"], "m") == [program(1)]
        assert after.samples("m", "t") == [sample(1)]
        after.close()

    def test_events_cannot_be_changed(self, tmp_path: Path) -> None:
        ledger = SqliteLedger(tmp_path / LEDGER)
        ledger.transition("host", 0, start("host"), "begins", 1.0, 0.0)
        ledger.close()
        db = sqlite3.connect(tmp_path / LEDGER)
        for statement in ("UPDATE event SET message = 'x'", "DELETE FROM event"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended"):
                db.execute(statement)
        db.close()

    def test_a_reader_sees_a_run_that_is_open_and_writes_nothing(self, tmp_path: Path) -> None:
        ledger = SqliteLedger(tmp_path / LEDGER)
        ledger.start("a", fake_world.config(), {})
        assert read_run(tmp_path).started == 1
        reader = SqliteLedger(tmp_path / LEDGER, read_only=True)
        with pytest.raises(LedgerError, match="readonly"):
            reader.add_work(record())
        reader.close()
        ledger.close()
        with pytest.raises(NoRun, match="holds no run"):
            read_run(tmp_path / "elsewhere")

    def test_a_newer_layout_is_refused(self, tmp_path: Path) -> None:
        SqliteLedger(tmp_path / LEDGER).close()
        db = sqlite3.connect(tmp_path / LEDGER)
        db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(LedgerError, match="newer cprune"):
            SqliteLedger(tmp_path / LEDGER)

    def test_something_else_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / LEDGER).write_text("not a ledger at all" * 100)
        with pytest.raises(LedgerError, match="not a database"):
            SqliteLedger(tmp_path / LEDGER)
        with pytest.raises(LedgerDamaged, match="not a database"):
            SqliteLedger(tmp_path / LEDGER, read_only=True)

    def test_an_empty_file_is_not_begun(self, tmp_path: Path) -> None:
        (tmp_path / LEDGER).touch()
        with pytest.raises(LedgerNotBegun):
            SqliteLedger(tmp_path / LEDGER, read_only=True)
        SqliteLedger(tmp_path / LEDGER).close()

    def test_a_full_disk_loses_nothing(self, tmp_path: Path) -> None:
        ledger = SqliteLedger(tmp_path / LEDGER)
        ledger.start("a", fake_world.config(), {})
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 4}")
        stored: list[str] = []
        with pytest.raises(LedgerFull, match="free some space and run the same command again"):
            for epochs in range(1000):
                work = FineTuneWork(
                    parent=fake_world.network(),
                    structure=fake_world.network().structure,
                    epochs=epochs,
                    learning_rate=0.1,
                )
                ledger.add_work(record(work))
                stored.append(work.key)
        assert stored
        assert ledger.finished_keys() == set(stored)
        with pytest.raises(LedgerFull):
            ledger.add_work(*(record(UniformWork(fraction=n / 1000)) for n in range(1, 1000)))
        assert ledger.finished_keys() == set(stored), "all of it or none"
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 100}")
        assert ledger.add_work(record())
        ledger.close()
        again = SqliteLedger(tmp_path / LEDGER)
        assert again.finished_keys() == {*stored, PrepareWork().key}
        again.close()

    def test_a_killed_writer_leaves_whole_transactions(self, tmp_path: Path) -> None:
        root = Path(__file__).parents[2]
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            writer = subprocess.Popen(
                [sys.executable, __file__, str(folder / LEDGER)],
                env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"},
                stdout=subprocess.PIPE,
            )
            assert writer.stdout is not None
            for _ in range(3):
                told = int(writer.stdout.readline())
            time.sleep(0.01 * number)
            writer.send_signal(signal.SIGKILL)
            writer.wait(10)
            told = max([told, *map(int, writer.stdout.read().split()[:-1])])
            ledger = SqliteLedger(folder / LEDGER)
            events = ledger.events()
            standings = ledger.standings()
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert len(events) >= told
            assert {name: item.sequence for name, item in standings.items()} == {
                event.target: event.sequence for event in events
            }
            assert len(ledger.programs(["task"], "m")) % 5 == 0
            assert ledger._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            ledger.close()


def write_for_ever(path: Path) -> None:
    """What the killed writer does."""
    ledger = SqliteLedger(path)
    number = 0
    while True:
        name = f"target-{number}"
        first = ledger.transition(name, 0, start(name), "", 0.0, 0.0)
        state = Tuning(target=name, search=fake_world.search())
        sequence = ledger.transition(name, first, state, "", 0.0, 0.0)
        ledger.add_programs([program(5 * number + index) for index in range(5)])
        print(sequence, flush=True)
        number += 1


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
