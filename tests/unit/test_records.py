"""The record store: what it takes in, gives out and throws away, and how it fails."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from records_world import failed, numbers, program, simulated, store

from orchestrator.store import records
from orchestrator.store.records import (
    RecordsBroken,
    RecordStore,
    RecordsUnusable,
    copy_store,
    store_path,
)
from schemas.config import MeasureConfig, RecordsConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "cprune" / "records.sqlite"


@pytest.fixture
def shared(path: Path) -> Iterator[RecordStore]:
    opened = store(path)
    yield opened
    opened.close()


class TestContent:
    def test_it_gives_out_what_it_took_in_the_order_of_the_first_time(
        self, shared: RecordStore
    ) -> None:
        shared.keep([program(3), program(1, task_id="another")])
        shared.keep([program(2), program(3, batch="again")])
        found = shared.take(["another", "task"], "m")
        assert numbers(found) == [3, 1, 2]
        assert [item.batch for item in found] == ["shared"] * 3
        assert [item.position for item in found] == [0, 1, 2]
        expected = program(3).model_copy(update={"batch": "shared"})
        assert found[0] == expected and found[0].is_shared
        assert numbers(shared.take(["task"], "m")) == [3, 2]
        assert shared.take(["task"], "another model") == []
        assert shared.take([], "m") == []

    def test_other_conditions_see_other_records(self, path: Path, shared: RecordStore) -> None:
        shared.keep([program(1)])
        other = store(path, conditions="tools of tomorrow")
        assert other.take(["task"], "m") == []
        other.keep([program(2)])
        assert numbers(other.take(["task"], "m")) == [2]
        assert numbers(shared.take(["task"], "m")) == [1]
        other.close()

    def test_a_copy_holds_what_the_store_does_and_nothing_else(
        self, tmp_path: Path, path: Path, shared: RecordStore
    ) -> None:
        """Both stores are in use meanwhile, and go on to be."""
        shared.keep([program(1), program(2)])
        copy = store(tmp_path / "copy.sqlite")
        copy.keep([program(3)])
        copy_store(path, tmp_path / "copy.sqlite")
        assert numbers(copy.take(["task"], "m")) == [1, 2]
        shared.keep([program(4)])
        copy.keep([program(5)])
        assert numbers(copy.take(["task"], "m")) == [1, 2, 5]
        assert numbers(shared.take(["task"], "m")) == [1, 2, 4]
        copy.close()

    def test_no_copy_is_made_of_a_store_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RecordsUnusable, match=r"no.sqlite cannot be used: unable to open"):
            copy_store(tmp_path / "no.sqlite", tmp_path / "copy.sqlite")
        assert not (tmp_path / "copy.sqlite").exists()

    def test_conditions_are_the_compilers_versions_and_how_programs_are_timed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual = MeasureConfig()
        before = records.conditions_of(usual)
        for changes in (
            {"program_repeats": 9},
            {"program_min_repeat_ms": 9},
        ):
            assert records.conditions_of(usual.model_copy(update=changes)) != before
        assert records.conditions_of(usual.model_copy(update={"model_repeats": 9})) == before
        versions = {"apache-tvm": "0.1", "apache-tvm-ffi": "0.2"}
        monkeypatch.setattr(records, "_version", versions.__getitem__)
        assert records.conditions_of(usual).startswith("apache-tvm 0.1, apache-tvm-ffi 0.2, ")

    def test_traces_of_other_code_around_the_compiler_are_other_records(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def conditions(code: str) -> str:
            (tmp_path / "our_compiling" / "names.py").write_text(code)
            records._digest_of_code.cache_clear()
            return records.conditions_of(MeasureConfig())

        (tmp_path / "our_compiling").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(records, "_COMPILING", "our_compiling")
        block, loop = conditions("block"), conditions("loop")
        assert block != loop
        assert conditions("block") == block
        assert "our_compiling" not in sys.modules

    def test_only_what_a_device_has_found_is_shared(self, shared: RecordStore) -> None:
        shared.keep([simulated(1, "replay"), simulated(2, "simulated"), program(3)])
        shared.keep([failed(4, "took longer than 5 s"), failed(5, "InternalError: no")])
        shared.keep([failed(6, "wrong result: differs by 1"), failed(7, "did not build: wrong")])
        assert numbers(shared.take(["task"], "m")) == [3, 6]

    def test_the_first_verdict_on_a_programs_outputs_is_final(self, shared: RecordStore) -> None:
        condemned = failed(2, "wrong result: differs by 1")
        shared.keep([program(1), program(2), program(3)])
        shared.keep([program(1, max_abs_error=0.0), condemned])
        shared.keep([program(1), failed(1, "wrong result: differs by 2"), program(2)])
        first, second, third = shared.take(["task"], "m")
        assert first.max_abs_error == 0.0 and first.measurement is not None
        assert second.is_condemned and second.error == condemned.error
        assert third.max_abs_error is None


class TestLimit:
    def test_those_unused_for_the_longest_time_go_first(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = itertools.count()
        monkeypatch.setattr(records.time, "time", lambda: float(next(now)))
        shared = store(path)
        shared.keep([program(number, task_id=f"task-{number % 2}") for number in range(10)])
        shared.take(["task-0"], "m")
        size = shared._db.execute("SELECT max(bytes) FROM record").fetchone()[0]
        shared.close()
        shared = store(path, max_bytes=10.5 * size)  # nine tenths: room for nine
        shared.keep([program(number, task_id="new") for number in (10, 11)])
        kept = {name: numbers(shared.take([name], "m")) for name in ("task-0", "task-1", "new")}
        assert kept == {"task-0": [0, 2, 4, 6, 8], "task-1": [7, 9], "new": [10, 11]}
        shared.close()

    def test_the_file_is_little_larger(self, path: Path) -> None:
        shared = store(path, max_bytes=1_000_000)
        for number in range(300):
            shared.keep([program(number, trace="t" * 10_000)])  # as long as most are
        count, _ = shared.extent()
        assert 80 < count < 100
        assert numbers(shared.take(["task"], "m")) == list(range(300 - count, 300))
        total = shared._db.execute("SELECT sum(bytes), count(*) FROM record").fetchone()
        assert shared._db.execute("SELECT bytes, records FROM total").fetchone() == total
        shared.close()
        assert 800_000 < path.stat().st_size < 1_250_000

    def test_what_is_cleared_is_given_back(self, path: Path, shared: RecordStore) -> None:
        shared.keep([program(number) for number in range(300)])
        shared.clear()
        assert shared.extent() == (0, 0) and shared.take(["task"], "m") == []
        shared.keep([program(1)])
        assert shared.extent() == (1, 1)
        shared.close()
        assert path.stat().st_size < 100_000


class TestSeveralRunsAtOnce:
    def test_they_open_it_together_and_lose_nothing(self, path: Path) -> None:
        writers = [
            subprocess.Popen(
                [sys.executable, __file__, str(path), str(first)],
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for first in (0, 25, 50)
        ]
        for writer in writers:  # all have imported what they need, and wait
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        shared = store(path)
        assert sorted(numbers(shared.take(["task"], "m"))) == list(range(100))
        assert shared.extent() == (100, 1)
        assert shared._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        shared.close()


class TestPlace:
    def test_it_lies_in_the_users_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert store_path() == Path("/cache/cprune/records.sqlite")
        assert store_path(RecordsConfig(path="/a/b")) == Path("/a/b")
        assert store_path(RecordsConfig(path="b")) == Path.cwd() / "b"
        monkeypatch.setenv("HOME", "/home/me")
        for ignored in ("", "relative"):
            monkeypatch.setenv("XDG_CACHE_HOME", ignored)
            assert store_path() == Path("/home/me/.cache/cprune/records.sqlite")

    def test_nobody_without_a_home_is_given_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nowhere() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", nowhere)
        with pytest.raises(RecordsUnusable, match=r"has no place: Could not determine home"):
            store_path()


class TestFailures:
    def test_something_else_in_its_place(self, path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.write_text("not a store at all" * 100)
        with pytest.raises(RecordsBroken, match=r"records.sqlite cannot be used: .*not a database"):
            store(path)

    def test_a_newer_layout(self, path: Path) -> None:
        store(path).close()
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(RecordsBroken, match="has layout 99, which this cprune does not know"):
            store(path)

    def test_a_damaged_page(self, path: Path) -> None:
        shared = store(path)
        shared.keep([program(number) for number in range(100)])
        shared.close()
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(RecordsBroken, match="malformed"):
            store(path).take(["task"], "m")

    def test_a_record_of_a_newer_cprune(self, path: Path, shared: RecordStore) -> None:
        shared.keep([program(1)])
        shared._db.execute("UPDATE record SET program = '{\"new\": 1}'")
        with pytest.raises(RecordsBroken, match="holds what this cprune cannot read"):
            shared.take(["task"], "m")

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(
            RecordsUnusable, match=r"records.sqlite cannot be used: Not a directory"
        ):
            store(tmp_path / "file" / "cprune" / "records.sqlite")

    def test_a_full_disk_keeps_what_there_was(self, shared: RecordStore) -> None:
        shared.keep([program(1)])
        pages = shared._db.execute("PRAGMA page_count").fetchone()[0]
        shared._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RecordsUnusable, match="full"):
            shared.keep([program(number) for number in range(100)])
        assert numbers(shared.take(["task"], "m")) == [1]


def keep_many(path: Path, first: int) -> None:
    """What each of several runs does: half of its programs are also another one's."""
    print("ready", flush=True)
    sys.stdin.read()
    shared = store(path)
    for number in range(first, first + 50):
        shared.keep([program(number)])
        shared.take(["task"], "m")
    shared.close()


if __name__ == "__main__":
    keep_many(Path(sys.argv[1]), int(sys.argv[2]))
