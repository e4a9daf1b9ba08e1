"""Samples in the record store: which a cost model begins with, and what becomes of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from records_world import TARGET, ageing_store, failed, numbers, program, sample, store

from orchestrator.store.record_layout import LAYOUTS
from orchestrator.store.records import RecordStore
from orchestrator.store.samples import chosen, spread

Ranked = tuple[float, str, str, int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
def shared(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordStore]:
    opened = ageing_store(path, monkeypatch)
    yield opened
    opened.close()


def give(shared: RecordStore, task_id: str, *given: int) -> None:
    shared.keep([program(number, task_id=task_id) for number in given])
    shared.keep_samples([sample(number, task_id) for number in given])


def taken(shared: RecordStore, *without: str) -> list[int]:
    return numbers(shared.take_samples("m", TARGET, without))


def task(name: str, programs: int) -> list[Ranked]:
    """A task's programs, the slowest first: number n takes n ms."""
    return [(float(n), f"{name}-{n}", name, n) for n in reversed(range(1, programs + 1))]


class TestChoice:
    def test_the_fastest_and_a_spread_of_the_others(self) -> None:
        ranked = sorted(task("a", 101))
        assert [one[0] for one in spread(ranked, 5)] == [1.0, 26.0, 51.0, 76.0, 101.0]
        assert spread(ranked[:3], 5) == ranked[:3]

    def test_tasks_get_equal_shares(self) -> None:
        found = chosen([task("a", 200), task("b", 10), task("c", 200)], 150)
        assert [sum(one[2] == name for one in found) for name in "abc"] == [50, 10, 50]
        assert [one[0] for one in found if one[2] == "b"] == list(map(float, range(1, 11)))
        assert len(chosen([task("a", 200)], 96)) == 96

    def test_of_many_tasks_the_first_ones_are_taken_until_there_are_enough(self) -> None:
        found = chosen((task(str(number), 40) for number in range(9)), 64)
        assert [one[2] for one in found] == ["0"] * 32 + ["1"] * 32
        small = chosen((task(str(number), 10) for number in range(9)), 64)
        assert len(small) == 64 and {one[2] for one in small} == set("0123456")

    def test_a_program_alone_tells_nothing(self) -> None:
        assert {one[2] for one in chosen([task("a", 1), task("b", 2), task("c", 9)], 64)} == {
            "b",
            "c",
        }
        assert chosen([], 64) == []

    def test_no_more_tasks_are_read_than_needed(self) -> None:
        tasks = iter([task("a", 40), task("b", 40), task("c", 40)])
        chosen(tasks, 64)
        assert next(tasks)[0][2] == "c"


class TestContent:
    def test_it_gives_out_what_it_took_of_the_task_used_last_first(
        self, shared: RecordStore
    ) -> None:
        give(shared, "one", 2, 1)
        give(shared, "two", 3, 4)
        assert shared.take_samples("m", TARGET, ()) == [
            *(sample(number, "two") for number in (3, 4)),
            *(sample(number, "one") for number in (1, 2)),
        ]
        shared.take(["one"], "m")
        assert taken(shared) == [1, 2, 3, 4]
        assert taken(shared) == [1, 2, 3, 4], "looking is no use of a task"
        assert taken(shared, "one", "none") == [3, 4]

    def test_those_of_another_key_are_not_seen(self, path: Path, shared: RecordStore) -> None:
        give(shared, "one", 1, 2)
        assert shared.take_samples("another model", TARGET, ()) == []
        assert shared.take_samples("m", "another target", ()) == []
        other = store(path, conditions="tools of tomorrow")
        assert taken(other) == []
        other.close()

    def test_the_first_one_of_a_program_stays(self, shared: RecordStore) -> None:
        give(shared, "one", 1, 2)
        shared.keep_samples([sample(1, "one", latency_ms=9.0, features=b"other")])
        assert taken(shared) == [1, 2]
        assert shared.take_samples("m", TARGET, ())[0] == sample(1, "one")

    def test_of_a_program_that_is_not_here_none_is_kept(self, shared: RecordStore) -> None:
        give(shared, "one", 1, 2)
        shared.keep_samples([sample(3, "one"), sample(4, "two")])
        assert taken(shared) == [1, 2]

    def test_nothing_is_learned_from_a_program_that_is_wrong(self, shared: RecordStore) -> None:
        give(shared, "task", 1, 2, 3)
        shared.keep([failed(1, "wrong result: differs by 1"), program(2, max_abs_error=0.0)])
        assert taken(shared) == [2, 3]


class TestLimit:
    def test_samples_count_and_go_with_their_records(self, path: Path) -> None:
        shared = store(path, max_bytes=100_000)
        give(shared, "one", 1)
        without, with_one = _sizes(shared)
        assert with_one - without == 600 + 64
        shared.keep([program(1, task_id="one", max_abs_error=0.0)])
        assert _sizes(shared)[1] - _sizes(shared)[0] == 600 + 64, "checked: it still counts"
        for number in range(2, 100):
            give(shared, "one", number)
        count, _ = shared.extent()
        assert 30 < count < 60
        assert shared._db.execute("SELECT count(*) FROM sample").fetchone() == (count,)
        total = shared._db.execute("SELECT sum(bytes), count(*) FROM record").fetchone()
        assert shared._db.execute("SELECT bytes, records FROM total").fetchone() == total
        shared.clear()
        assert shared._db.execute("SELECT bytes, records FROM total").fetchone() == (0, 0)
        assert shared._db.execute("SELECT count(*) FROM sample").fetchone() == (0,)
        shared.close()

    def test_a_store_of_before_is_taken_over(self, path: Path) -> None:
        db = sqlite3.connect(path)
        for statement in LAYOUTS[0]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
        text = program(1, task_id="one").model_dump_json()
        db.execute(
            "INSERT INTO record (task_id, device_model, conditions, program_id, verdict, bytes, "
            "used_at, program) VALUES ('one', 'm', 'tools of today', 'program-1', 0, 9, 0.0, ?)",
            (text,),
        )
        db.commit()
        db.close()
        shared = store(path)
        assert numbers(shared.take(["one"], "m")) == [1] and taken(shared) == []
        give(shared, "one", 1, 2)
        assert taken(shared) == [1, 2]
        shared.close()


def _sizes(shared: RecordStore) -> tuple[int, int]:
    """Bytes that the first record counts for by itself, and with its sample."""
    row = shared._db.execute("SELECT bytes, program FROM record ORDER BY ordinal").fetchone()
    keys = ("one", "m", "tools of today", "program-1")
    return len(row[1]) + 2 * sum(map(len, keys)), row[0]
