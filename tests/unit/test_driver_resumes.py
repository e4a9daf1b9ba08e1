"""What a run goes on from: another configuration, another place, files that are damaged."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import fake_world
import pytest
from driver_world import TWO, decisions, go, opening, quiet, refuse, stopped

from orchestrator.driver import run
from orchestrator.interrupts import Interrupts
from orchestrator.policies.retry import Failure
from orchestrator.store.base import LedgerDamaged, LedgerError
from orchestrator.store.config_guard import ConfigChanged
from orchestrator.store.reader import LEDGER, NoRun, read_run
from schemas.config import BudgetConfig
from schemas.work import ExportWork, PrepareWork, Work


def test_an_impossible_floor_may_be_lowered_and_the_dense_network_is_kept(tmp_path: Path) -> None:
    config = fake_world.config(prune={"accuracy_floor": 0.99})
    record = go(tmp_path, config)
    assert record.state == "failed" and "prune.accuracy_floor" in record.error
    workers = fake_world.FakeWorkers()
    assert go(tmp_path, config, workers).error == record.error
    assert workers.executed == []
    lower = fake_world.config(prune={"accuracy_floor": 0.5})
    record = go(tmp_path, lower, workers)
    assert (record.state, record.targets[0].accuracy_floor) == ("done", 0.5)
    assert not any(isinstance(work, PrepareWork) for work in workers.executed)
    with pytest.raises(ConfigChanged, match=r"prune.accuracy_floor was 0.5 and is now 0.4"):
        go(tmp_path, fake_world.config(prune={"accuracy_floor": 0.4}))


def test_a_finished_run_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    small, large = (fake_world.config(budget={"max_rounds": rounds}) for rounds in (3, 40))
    first = go(tmp_path, small)
    assert first.targets[0].stopped_by.startswith("budget.max_rounds")
    lines: list[str] = []
    assert run(small, tmp_path, refuse, report=lines.append) == first
    assert len(lines) == 1 and "raise budget.max_rounds" in lines[0]
    workers = fake_world.FakeWorkers()
    record = go(tmp_path, large, workers)
    assert record.state == "done" and record.started == 2
    assert decisions(record) == decisions(go(tmp_path / "at once", large))
    assert any(isinstance(work, ExportWork) for work in workers.executed)
    assert not {item.work.key for item in first.work} & {work.key for work in workers.executed}


def test_a_finished_run_is_not_started_again(tmp_path: Path) -> None:
    first = go(tmp_path)
    (tmp_path / "events.jsonl").unlink()
    assert run(fake_world.config(), tmp_path, refuse, report=quiet) == first
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(1, len(lines) + 1))


def test_another_configuration_is_refused_but_for_its_budgets(tmp_path: Path) -> None:
    short = fake_world.config(prune={"accuracy_floor": 0.5}, budget={"max_rounds": 1})
    signals = Interrupts()

    def began(work: Work) -> None:
        if not signals.count:
            signals.notice()

    go(tmp_path, short, fake_world.FakeWorkers(began=began), interrupts=signals)
    other = short.model_copy(update={"seed": 3})
    with pytest.raises(ConfigChanged, match="seed was 0 and is now 3"):
        go(tmp_path, other)
    longer = fake_world.config(prune={"accuracy_floor": 0.5}, budget={"max_rounds": 4})
    record = go(tmp_path, longer)
    assert record.state == "done" and record.config == longer


def test_a_run_that_failed_before_any_work_was_done_may_be_corrected(tmp_path: Path) -> None:
    wrong = fake_world.config(model={"name": "nothing"}, targets=TWO)

    def fault(work: Work) -> Failure:
        return Failure(kind="user_error", message="model.name: there is no such network")

    record = go(tmp_path, wrong, fake_world.FakeWorkers(fault=fault))
    assert record.state == "failed"
    lines: list[str] = []
    right = fake_world.config(targets=[TWO[0], {"name": "other"}])
    record = run(right, tmp_path, opening(fake_world.FakeWorkers()), report=lines.append)
    assert "begins anew" in lines[0] and "model.name" in lines[0]
    assert (record.state, record.error) == ("done", "")
    assert [target.target for target in record.targets] == ["big", "other"]


def test_a_folder_that_was_moved_goes_on_from_its_new_place(tmp_path: Path) -> None:
    short = fake_world.config(budget={"max_rounds": 1})
    go(tmp_path / "old" / "run", short)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = fake_world.config(output=str(tmp_path / "new"), measure={"device_wait_s": 9.0})
    assert go(tmp_path / "new" / "run", moved).state == "done"


@pytest.mark.parametrize("torn", [b'{"sequence": 99, "torn', b"\xff garbage\n", b"[]\n", b"\n"])
@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_torn_event_file_is_written_anew(tmp_path: Path, torn: bytes, at_the_end: bool) -> None:
    go(tmp_path, interrupts=stopped())
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn if at_the_end else torn + whole)
    record = go(tmp_path)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [
        event.sequence for event in record.events
    ]


def test_an_infinite_budget_is_not_stored(tmp_path: Path) -> None:
    endless = BudgetConfig.model_construct(max_rounds=1, max_hours=math.inf)
    with pytest.raises(LedgerError, match=r"does not read back.*budget\.max_hours"):
        go(tmp_path, fake_world.config().model_copy(update={"budget": endless}))
    assert go(tmp_path).state == "done"


@pytest.mark.parametrize("damage", [b"not a ledger " * 1000, b"SQLite format 3\0" + b"x" * 9000])
def test_a_damaged_ledger_is_one_sentence_for_whoever_opens_it(
    tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / LEDGER).write_bytes(damage)
    for opens in (read_run, go):
        with pytest.raises(LedgerDamaged, match="put back a copy") as caught:
            opens(tmp_path)
        assert str(tmp_path / LEDGER) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("replace(config, '240.0', 'null')", r"budget\.max_hours"),
        ("CAST(x'7bff' || hex(zeroblob(2000)) AS TEXT)", "Could not decode"),
        ("'{'", "Invalid JSON"),
    ],
)
def test_a_ledger_damaged_in_the_middle_is_one_sentence_too(
    tmp_path: Path, damage: str, told: str
) -> None:
    go(tmp_path)
    db = sqlite3.connect(tmp_path / LEDGER)
    with db:
        db.execute(f"UPDATE run SET config = {damage}")
    db.close()
    for opens in (read_run, go):
        with pytest.raises(LedgerDamaged, match=told) as caught:
            opens(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_an_empty_ledger_counts_as_not_begun(tmp_path: Path) -> None:
    (tmp_path / LEDGER).touch()
    with pytest.raises(NoRun, match="has not begun"):
        read_run(tmp_path)
    assert go(tmp_path).state == "done"
