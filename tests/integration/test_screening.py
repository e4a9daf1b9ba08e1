"""Screening on a real local device: a task without a good transplant gets a short search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import tuning_world
from tuning_world import Table, screen_work, tune_work

from schemas.table import SHARED_BATCH
from schemas.work import Screened, ScreeningKind, Tuned
from workers.tuning import screening
from workers.tuning.screening import Screener
from workers.tuning.worker import TuningWorker

LAYER, TRIALS = "layer2.0.conv1", 3


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuningWorker]:
    tune = {**tuning_world.config().tune.model_dump(), "retune_trials_per_task": TRIALS}
    started = tuning_world.worker(tmp_path_factory.mktemp("run"), Table(), tune=tune)
    started._tuner.tune(tune_work(2))
    yield started
    started.close()


@pytest.fixture
def table(worker: TuningWorker) -> Iterator[Table]:
    """The dense network's programs; what a test adds is gone after it."""
    table = worker._tuner._table
    assert isinstance(table, Table)
    before = dict(table._programs)
    yield table
    table._programs.clear()
    table._programs.update(before)


def screen(worker: TuningWorker) -> Screened:
    return worker._screener.screen(screen_work(LAYER, 16, 8))


def searched(table: Table, before: set[str]) -> Counter[str]:
    """Searched programs that are new, by task."""
    new = [p for p in table.all_programs() if p.program_id not in before]
    return Counter(program.task_id for program in new if program.source == "search")


def known(table: Table) -> set[str]:
    return {program.program_id for program in table.all_programs()}


@pytest.mark.parametrize("share", [0.9, 0.3])
def test_a_task_whose_transplant_gains_less_than_half_of_what_it_should_is_searched(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Half of its channels are gone: 0.75 of the time would be half of the gain."""
    monkeypatch.setattr(screening, "_share_of_origin", lambda programs, origins: share)
    before = known(table)
    found = screen(worker)
    assert not found.refused
    counts = searched(table, before)
    assert set(counts.values()) == ({TRIALS} if share > 0.75 else set())
    stored = len(table.all_programs())
    assert screen(worker).candidate_id == found.candidate_id
    assert len(table.all_programs()) == stored, "the same work again measures nothing"


def test_a_task_without_any_transplant_is_searched(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Screener, "_transplants", lambda *_: [])
    before = known(table)
    found = screen(worker)
    assert not found.refused and found.candidate_ms > 0.0
    assert set(searched(table, before).values()) == {TRIALS}


@pytest.mark.parametrize("slower", [1.0, 100.0])
def test_a_transplant_that_another_run_measured_is_judged_like_an_own_one(
    worker: TuningWorker, table: Table, slower: float
) -> None:
    """It is not measured again; where it is poor, its task is searched."""
    screen(worker)
    moved = [program for program in table.all_programs() if program.source == "transplant"]
    for key, program in list(table._programs.items()):
        if program not in moved:
            continue
        assert program.measurement is not None
        run_ms = tuple(slower * ms for ms in program.measurement.run_ms)
        update = {"run_ms": run_ms}
        changes = {
            "batch": SHARED_BATCH,
            "beside_ms": None,
            "measurement": program.measurement.model_copy(update=update),
        }
        table._programs[key] = program.model_copy(update=changes)
    before = known(table)
    found = screen(worker)
    assert not found.refused
    own = [p for p in table.all_programs() if p.program_id not in before]
    assert not any(program.source == "transplant" for program in own)
    changed = {program.task_id for program in moved}
    assert slower == 1.0 or set(searched(table, before)) == changed


def test_without_retuning_such_a_candidate_is_refused(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Screener, "_transplants", lambda *_: [])
    plain = worker._screener._config.model_copy(update={"retune_trials_per_task": 0})
    monkeypatch.setattr(worker._screener, "_config", plain)
    assert "no transplant of" in screen(worker).refused


def screen_by_search(worker: TuningWorker, by: ScreeningKind) -> Tuned:
    """Cut the last stage's channels, which go through a pooling that has no torch module."""
    work = screen_work("layer2.0.conv2", 16, 8)
    work = work.model_copy(update={"by": by, "trials_per_task": TRIALS})
    found = worker._screener.screen(work)
    assert not found.refused and found.tuned is not None
    return found.tuned


def test_a_search_instead_of_transplants_is_one_of_all_changed_tasks(
    worker: TuningWorker, table: Table
) -> None:
    before, dense = known(table), {program.task_id for program in table.all_programs()}
    tuned = screen_by_search(worker, "search")
    changed = {task.task_id for task in tuned.table.tasks} - dense
    assert set(searched(table, before)) == changed
    assert any(not tuned.table.modules(task_id) for task_id in changed)


def test_a_search_of_all_tasks_repeats_what_other_runs_have_searched(
    worker: TuningWorker, table: Table
) -> None:
    for program in table.all_programs():
        table._programs[(program.program_id, program.device_model)] = program.model_copy(
            update={"batch": SHARED_BATCH}
        )
    before = known(table)
    tuned = screen_by_search(worker, "search_all")
    counts = searched(table, before)
    convolutions = [task.task_id for task in tuned.table.tasks if task.kind != "other"]
    assert all(counts[task_id] >= TRIALS for task_id in convolutions), "more where it pays"
