"""Runs that share a record store, on a real local device: nothing is measured twice, and what was
learned from one network is known to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tuning_world
from tuning_world import network, restarted, screen_work, tune_work

from orchestrator.machine import start
from orchestrator.store.reader import LEDGER, record_of
from orchestrator.store.sharing import SharingLedger, sharing_of
from orchestrator.summary import summarise
from schemas.config import RunConfig
from schemas.record import WorkRecord
from schemas.table import Program, Sample
from schemas.work import Screened, ScreenWork, Tuned, TuneWork
from workers.tuning.cost_model import RecordModel
from workers.tuning.search_jobs import SearchJob
from workers.tuning.searchers import Searchers
from workers.tuning.tuner import Tuner
from workers.tuning.worker import TuningWorker

LAYER, OTHER = "layer2.0.conv1", "conv1"
PRUNED = network(layer2__0__conv1=8)


class Run:
    """One run with a ledger of its own, on the worker's device."""

    def __init__(self, folder: Path, worker: TuningWorker, config: RunConfig) -> None:
        folder.mkdir()
        self._folder, self._config = folder, config
        self.ledger = SharingLedger(folder / LEDGER, sharing_of(config))
        self.ledger.start("start", config, {})
        self.ledger.transition("host", 0, start("host"), "begins", 0.0, 0.0)
        self._worker = worker

    def restart(self) -> None:
        """Begin again with what the run's folder holds."""
        self.ledger.close()
        self.ledger = SharingLedger(self._folder / LEDGER, sharing_of(self._config))

    def tune_alone(self, trials: int, module: str = LAYER, **changes: object) -> Tuned:
        """Tune one task, whatever it gains."""
        return self._tuner(trials).tune(tune_work(trials, module, **changes))

    def samples(self, tuned: Tuned) -> list[Sample]:
        """What its cost model begins with."""
        learning = self._tuner()._learning
        return self.ledger.samples(tuned.device_model, learning._target)

    def tune(self, trials: int, **changes: object) -> Tuned:
        """Tune two tasks; each is owed one trial, the others go where they pay."""
        work = tune_work(trials, LAYER, OTHER, **changes)
        outcome = self._tuner().tune(work)
        self._note(work, outcome)
        return outcome

    def screen(self) -> Screened:
        """Transplant the layer's program to the pruned network."""
        work = screen_work(LAYER, 16, 8)
        self._tuner()
        (outcome,) = self._worker._screener.screen([work])
        self._note(work, outcome)
        return outcome

    def whole(self) -> list[Tuned]:
        """What a run does that prunes the layer once.

        The dense network has all its programs before: a second run knows them from the beginning,
        and the fastest of more might be another one to transplant.
        """
        screened = (self.tune(5), self.screen().tuned)
        retuned = self.tune(2, network=PRUNED, added_trials=True)
        done = [*screened, retuned, self.tune(4, network=PRUNED)]
        return [tuned for tuned in done if tuned is not None]

    def measured(self) -> int:
        """Programs this run measured or failed to, by its summary."""
        (target,) = summarise(record_of(self.ledger)).targets
        return target.measured_programs + target.failed_programs

    def programs(self, tuned: Tuned) -> list[Program]:
        tasks = [entry.task_id for entry in tuned.latencies]
        return self.ledger.programs(tasks, tuned.device_model)

    def _tuner(self, min_trials: int = 1) -> Tuner:
        """A tuner that knows this run's ledger alone."""
        for part in (self._worker._tuner, self._worker._trials):
            part._table = self.ledger
        return restarted(self._worker, min_trials_per_task=min_trials)

    def _note(self, work: TuneWork | ScreenWork, outcome: Tuned | Screened) -> None:
        self.ledger.add_work(WorkRecord(work=work, outcome=outcome, finished_at=0.0, seconds=0.0))


@pytest.fixture
def open_run(worker: TuningWorker, tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    config = tuning_world.config(records={"path": str(tmp_path / "records.sqlite")})
    before = worker._tuner._table
    runs: list[Run] = []

    def open_it(name: str) -> Run:
        runs.append(Run(tmp_path / name, worker, config))
        return runs[-1]

    yield open_it
    for run in runs:
        run.ledger.close()
    for part in (worker._tuner, worker._trials):
        part._table = before


@pytest.fixture
def asked(worker: TuningWorker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the device was asked to measure or to check."""
    gauge, keys = worker._device.gauge, []
    measure, check = gauge.measure, gauge.check
    monkeypatch.setattr(gauge, "measure", lambda key, lib: keys.append(key) or measure(key, lib))
    monkeypatch.setattr(gauge, "check", lambda key, *libs: keys.append(key) or check(key, *libs))
    return keys


def test_a_second_run_measures_nothing(open_run: Callable[[str], Run], asked: list[str]) -> None:
    first, second = open_run("first"), open_run("second")
    before = first.whole()
    stored = {p.program_id: p for tuned in before for p in first.programs(tuned)}
    assert first.measured() == len(stored) and not any(p.is_shared for p in stored.values())
    assert all(p.measurement is not None for p in stored.values()), "each was built and ran"
    asked.clear()

    after = second.whole()
    assert asked == []
    assert second.measured() == 0
    taken = [p for tuned in after for p in second.programs(tuned)]
    assert all(p.is_shared for p in taken)
    assert {p.program_id: p.measurement for p in taken} == {
        name: p.measurement for name, p in stored.items()
    }
    assert after[-1].latencies == before[-1].latencies


def test_a_larger_run_measures_what_is_new(open_run: Callable[[str], Run]) -> None:
    first, second = open_run("first"), open_run("second")
    small = first.tune(2)
    large = second.tune(4)
    assert (first.measured(), second.measured()) == (4, 4)
    programs = second.programs(large)
    assert [p.is_shared for p in programs] == [True] * 4 + [False] * 4
    assert [p.program_id for p in programs[:4]] == [p.program_id for p in first.programs(small)]
    assert len({p.program_id for p in programs}) == 8
    third = open_run("third")
    third.tune(4)
    assert third.measured() == 0


class Interrupted(Exception):
    """Stands for a kill."""


@dataclass(frozen=True)
class Round:
    """What a round of search knew and proposed."""

    task_id: str
    known: int
    learned_from: dict[str, int]
    is_guess: bool
    proposed: list[str]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[Round]:
    """The rounds of all runs."""
    seen: list[Round] = []
    models: list[dict[str, int]] = []
    fitted, original = RecordModel.fitted, Searchers.propose

    def fit(self: RecordModel, records: dict[str, dict[str, float]], seed: int) -> Any:
        model = fitted(self, records, seed)
        models.append({name: len(group.features) for name, group in model.data.items()})
        return model

    def propose(self: Searchers, jobs: Sequence[SearchJob], booster: bytes) -> Any:
        found = original(self, jobs, booster)
        for job, programs in zip(jobs, found, strict=True):
            ids = [program.program_id for program in programs]
            seen.append(Round(job.task.task_id, len(job.known), models[-1], not booster, ids))
        return found

    monkeypatch.setattr(RecordModel, "fitted", fit)
    monkeypatch.setattr(Searchers, "propose", propose)
    return seen


def task_of(tuned: Tuned, module: str = LAYER) -> str:
    (found,) = [s.task_id for s in tuned.table.subgraphs if s.module == module]
    return found


def test_a_run_on_another_network_does_not_begin_with_a_guess(
    open_run: Callable[[str], Run], rounds: list[Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after a kill it goes on with the same samples, whatever others have added."""
    first, second = open_run("first"), open_run("second")
    dense = first.tune_alone(20)
    assert rounds[0].is_guess and not rounds[0].learned_from and first.samples(dense) == []
    ran = {p.program_id: p.latency_ms for p in first.programs(dense) if p.measurement}
    assert dense.earlier == ()
    assert len(ran) >= 16

    add, stored = second.ledger.add_programs, []

    def kill(programs: list[Program]) -> None:
        if len(stored) == 1:
            raise Interrupted
        stored.extend(programs)
        add(programs)

    monkeypatch.setattr(second.ledger, "add_programs", kill)
    rounds.clear()
    with pytest.raises(Interrupted):
        second.tune_alone(4, network=PRUNED)
    samples = second.samples(dense)
    assert {sample.program_id: sample.latency_ms for sample in samples} == ran
    assert rounds[0].learned_from == {task_of(dense): len(ran)} and not rounds[0].is_guess
    before = {one.known: one for one in rounds}

    first.tune_alone(2, OTHER)
    second.restart()
    rounds.clear()
    pruned = second.tune_alone(4, network=PRUNED)
    assert task_of(pruned) != task_of(dense) and second.samples(dense) == samples
    after = {one.known: one for one in rounds}
    assert {known: after[known] for known in before} == before
    assert rounds[-1].learned_from == {task_of(dense): len(ran), task_of(pruned): 2}
    proposed = {program_id for one in rounds for program_id in one.proposed}
    own = [p for p in second.programs(pruned) if p.task_id == task_of(pruned)]
    assert proposed == {p.program_id for p in own} and len(own) == 4

    others = open_run("third").tune_alone(1).earlier
    known = {task.task_id: task.latency_ms for task in others}
    assert task_of(pruned) in known and task_of(dense) not in known
    assert known[task_of(pruned)] == min(p.latency_ms for p in own if p.measurement)
