"""Screening on a real local device: a task without a good transplant gets a short search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import tuning_world
from tuning_world import Table, restarted, screen_work, tune_work

from schemas.table import SHARED_BATCH
from schemas.work import Screened, ScreeningKind, ScreenWork, Tuned
from workers.tuning import screening
from workers.tuning.screening import Screener
from workers.tuning.search_jobs import SearchJob
from workers.tuning.searchers import Searchers
from workers.tuning.worker import TuningWorker

LAYER, TRIALS = "layer2.0.conv1", 3


class KilledError(Exception):
    """Stands for a kill."""


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
    (found,) = worker._screener.screen([screen_work(LAYER, 16, 8)])
    return found


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
    monkeypatch.setattr(screening, "share_of_origin", lambda programs, origins: share)
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


def works(*widths: int) -> list[ScreenWork]:
    return [screen_work(LAYER, 16, width) for width in widths]


def transplants(table: Table, before: set[str]) -> set[str]:
    new = [p for p in table.all_programs() if p.program_id not in before]
    return {program.program_id for program in new if program.source == "transplant"}


def test_candidates_that_are_screened_together_get_the_transplants_they_would_get_alone(
    worker: TuningWorker, table: Table
) -> None:
    before, dense = known(table), dict(table._programs)
    together = worker._screener.screen(works(12, 8))
    moved = transplants(table, before)
    assert all(not found.refused and found.tuned for found in together)
    counted = sum(found.tuned.measured_programs for found in together if found.tuned)
    assert counted == sum(
        program.measurement is not None and program.program_id not in before
        for program in table.all_programs()
    )
    table._programs.clear()
    table._programs.update(dense)
    for work in works(12, 8):
        worker._screener.screen([work])
    assert transplants(table, before) == moved


def test_a_task_that_several_candidates_have_is_transplanted_for_the_first(
    worker: TuningWorker, table: Table
) -> None:
    before = known(table)
    work, other = works(8, 8)
    again = other.candidate.model_copy(update={"candidate_id": "another training"})
    first, second = worker._screener.screen([work, other.model_copy(update={"candidate": again})])
    assert first.tuned is not None and second.tuned is not None
    assert first.tuned.measured_programs > 0
    assert second.tuned.measured_programs == 0
    assert second.candidate_ms == first.candidate_ms
    new = [program for program in table.all_programs() if program.program_id not in before]
    assert len({program.batch for program in new if program.source == "transplant"}) == 1


def test_searches_for_several_candidates_take_turns_and_share_waves(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Screener, "_transplants", lambda *_: [])
    waves: list[set[str]] = []
    propose = Searchers.propose

    def watched(self: Searchers, jobs: Sequence[SearchJob], booster: bytes) -> object:
        waves.append({job.task.task_id for job in jobs})
        return propose(self, jobs, booster)

    monkeypatch.setattr(Searchers, "propose", watched)
    monkeypatch.setattr(worker._screener, "_tuner", restarted(worker, rounds_at_once=3))
    before = known(table)
    found = worker._screener.screen(works(12, 8))
    assert all(not one.refused and one.candidate_ms > 0.0 for one in found)
    counts = searched(table, before)
    assert set(counts.values()) == {TRIALS}
    tables = [one.tuned.table for one in found if one.tuned is not None]
    own = [{task.task_id for task in one.tasks} for one in tables]
    mixed = [wave for wave in waves if wave - own[0] and wave - own[1]]
    assert mixed, "tasks of both candidates are searched at once"


def test_screenings_that_are_killed_together_go_on_where_they_were(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "share_of_origin", lambda programs, origins: 0.9)
    before, dense = known(table), dict(table._programs)
    whole = worker._screener.screen(works(12, 8))
    counts, moved = searched(table, before), transplants(table, before)
    new = len(table.all_programs()) - len(dense)
    for stored in (1, len(moved) + 3, new - 1):
        table._programs.clear()
        table._programs.update(dense)

        def kill(programs: int, limit: int = len(dense) + stored) -> None:
            if programs >= limit:
                raise KilledError

        table.before_add = kill
        with pytest.raises(KilledError):
            worker._screener.screen(works(12, 8))
        kept = known(table)
        assert len(kept) == len(dense) + stored
        table.before_add = None
        again = worker._screener.screen(works(12, 8))
        assert kept <= known(table) and transplants(table, before) == moved
        assert searched(table, before) == counts, "as many, so that those were proposed again"
        for one, other in zip(again, whole, strict=True):
            assert one.tuned is not None and other.tuned is not None
            assert one.tuned.measured_programs == other.tuned.measured_programs


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
    assert "no program of" in screen(worker).refused


def screened_by_search(worker: TuningWorker, by: ScreeningKind) -> Screened:
    """Cut the last stage's channels, which go through a pooling that has no torch module."""
    work = screen_work("layer2.0.conv2", 16, 8)
    work = work.model_copy(update={"by": by, "trials_per_task": TRIALS})
    (found,) = worker._screener.screen([work])
    assert not found.refused
    return found


def screen_by_search(worker: TuningWorker, by: ScreeningKind) -> Tuned:
    tuned = screened_by_search(worker, by).tuned
    assert tuned is not None
    return tuned


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


def test_an_interrupted_search_of_all_tasks_still_compares_with_the_programs_of_before(
    worker: TuningWorker, table: Table
) -> None:
    """Tasks that did not change are the parent's, too: what the search found is no program of
    the parent's when the work is taken up again."""
    before = known(table)
    dense = {program.task_id for program in table.all_programs()}
    first = screened_by_search(worker, "search_all")
    for program in table.all_programs():
        if program.program_id in before or program.task_id not in dense or not program.measurement:
            continue
        fast = tuple(ms / 10.0 for ms in program.measurement.run_ms)
        measurement = program.measurement.model_copy(update={"run_ms": fast})
        table._programs[(program.program_id, program.device_model)] = program.model_copy(
            update={"measurement": measurement}
        )
    again = screened_by_search(worker, "search_all")
    assert again.parent_ms == first.parent_ms
    assert again.candidate_ms < first.candidate_ms
