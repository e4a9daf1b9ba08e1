"""The rounds of units of work: programs are proposed, built and measured until none are owed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tvm.ir import save_json

from schemas.config import TuneConfig
from schemas.table import Program
from schemas.work import TuneWork
from workers.compiling.builder import Library
from workers.compiling.programs import ScheduleSpace, program_id
from workers.compiling.workload import Workload
from workers.measuring.gauge import Gauge
from workers.tuning.budget import Budget
from workers.tuning.bundle import Bundle
from workers.tuning.learning import Learning
from workers.tuning.relatives import faster_relatives, faster_siblings, siblings
from workers.tuning.schedule import Allowance, Schedule, TaskProgress
from workers.tuning.search_jobs import FoundProgram, SearchJob
from workers.tuning.searchers import Searchers
from workers.tuning.stored import fastest
from workers.tuning.trials import Trial, Trials

_UNTUNED = "[[],[]]"


@dataclass(frozen=True)
class Searching:
    """What the rounds of a target's work have in common.

    ``meanwhile``: whether the device has cores of its own, so that a wave is measured while the
    next is searched. The table is then asked from two threads.
    """

    space: ScheduleSpace
    searchers: Searchers
    learning: Learning
    trials: Trials
    gauge: Gauge
    config: TuneConfig
    seed: int
    working: Callable[[], AbstractContextManager[None]]
    meanwhile: bool


@dataclass(frozen=True)
class _Round:
    """What a round proposed, and the features of each program, packed."""

    task_id: str
    trials: list[Trial]
    features: dict[str, bytes]


@dataclass
class _Wave:
    """Rounds in flight: their programs are being built, then perhaps ``measured``, in one batch."""

    rounds: list[_Round]
    missing: list[Trial]
    libraries: Future[list[Library]]
    measured: Future[list[Program]] | None = None

    def tasks(self) -> set[str]:
        return {one.task_id for one in self.rounds}


class Rounds:
    """Carries out the trials of units of work, without a look at what programs compute.

    Wave after wave of rounds of different tasks, as the schedule has it; one is built, and where
    the device has cores of its own measured, while the next is searched. The rounds of a wave know
    what was stored before these works and their own waves before it, so they propose the same
    programs when the works are taken up again. A task that several works ask for is searched for
    the first of them.
    """

    def __init__(
        self,
        means: Searching,
        works: Sequence[tuple[TuneWork, Bundle]],
        stored: dict[str, list[Program]],
    ) -> None:
        """``stored``: task -> all its programs, batch by batch, those of these works among them."""
        self._means = means
        self._workloads = {
            task_id: workload
            for _, bundle in works
            for task_id, workload in bundle.workloads.items()
        }
        self._known, self._done = _split(stored, tuple(f"{work.key}/" for work, _ in works))
        self._prefixes: dict[str, str] = {}  # task -> of its batches, where a work asks for it
        allowances = [self._allowance(work, bundle) for work, bundle in works]
        self._schedule = Schedule(allowances, means.config.round_size)
        self._progress = {progress.task_id: progress for progress in self._schedule.tasks}
        self._catches_up = any(work.trials for work, _ in works)
        self._count_of_works = len(works)
        self._began, self._device_s = time.monotonic(), means.gauge.device_s

    def _allowance(self, work: TuneWork, bundle: Bundle) -> Allowance:
        taken = tuple(self._prefixes)
        budget = Budget(work, bundle.table, self._known, self._means.config.min_trials_per_task)
        own = [task_id for task_id in bundle.task_ids if budget.wants(task_id)]
        for task_id in own:
            self._prefixes.setdefault(task_id, f"{work.key}/")
        tasks = [
            one for one in budget.progress() if one.task_id in own and one.task_id not in taken
        ]
        return Allowance(tasks, budget.total(besides=taken))

    def run(self) -> None:
        """All rounds; each program is stored the moment it is measured."""
        with ThreadPoolExecutor(1, thread_name_prefix="measures") as background:
            self._scheduled(background)
        for task_id in self._prefixes:
            if self._time_is_spent():
                break
            self._take_over(task_id)
        for task_id in self._prefixes:
            if fastest(self._known[task_id]) is None:
                self._measure_untuned(self._workloads[task_id])
        self._means.gauge.release()

    def _scheduled(self, background: ThreadPoolExecutor) -> None:
        in_flight: _Wave | None = None
        number = 0
        at_once = self._means.config.rounds_at_once or self._means.searchers.usual_rounds
        while True:
            following = [] if self._time_is_spent() else self._schedule.next_rounds(at_once)
            busy = in_flight.tasks() if in_flight is not None else set()
            free = [(task, count) for task, count in following if task.task_id not in busy]
            if in_flight is not None and not free:
                self._finish(in_flight)
                in_flight = None
                continue  # what it brought may change who is next
            if not free:
                return
            started = self._start(free, number)
            number += len(free)
            if not started.rounds:
                continue
            if in_flight is not None:
                self._finish(in_flight)
            if self._means.meanwhile:
                started.measured = background.submit(self._measure, started)
            in_flight = started

    def _time_is_spent(self) -> bool:
        """Never where the work catches up with what another network had in several works."""
        if self._catches_up:
            return False
        wall_s = time.monotonic() - self._began
        device_s = self._means.gauge.device_s - self._device_s
        config = self._means.config
        limits = ((wall_s, config.max_s), (device_s, config.max_device_s))
        return any(
            limit_s is not None and spent >= limit_s * self._count_of_works
            for spent, limit_s in limits
        )

    def _start(self, wanted: Sequence[tuple[TaskProgress, int]], number: int) -> _Wave:
        """Search the tasks, and start building those of the programs not measured yet."""
        means, known = self._means, self._known
        means.learning.look_at(self._workloads, known)
        with means.working():
            booster = means.learning.fitted(known, means.trials.measured_as)
        workloads = self._workloads
        jobs = [
            self._job(
                task.task_id,
                count,
                seed=(means.seed + len(known[task.task_id])) % (2**31),
                examples=(
                    *siblings(workloads, task.task_id, known),
                    *faster_relatives(workloads, task.task_id, known),
                ),
            )
            for task, count in wanted
        ]
        rounds = []
        for index, found in enumerate(means.searchers.propose(jobs, booster), start=1):
            progress, _ = wanted[index - 1]
            progress.exhausted = not found
            progress.started += len(found)  # a round may find fewer than it was asked for
            if found:
                rounds.append(self._round(progress.task_id, str(number + index), found))
        return self._building(rounds)

    def _job(
        self,
        task_id: str,
        count: int,
        seed: int,
        examples: Sequence[str],
        *,
        only_adapted: bool = False,
    ) -> SearchJob:
        workload, config = self._workloads[task_id], self._means.config
        return SearchJob(
            task=workload.task,
            module=workload.text,
            axes=workload.axes,
            known=tuple(self._known[task_id]),
            population_size=config.population_size,
            generations=config.generations,
            count=count,
            seed=seed,
            examples=tuple(examples),
            only_adapted=only_adapted,
        )

    def _round(self, task_id: str, name: str, found: Sequence[FoundProgram]) -> _Round:
        workload = self._workloads[task_id]
        batch = f"{self._prefixes[task_id]}{task_id[:16]}/{name}"
        trials = [
            Trial(workload, batch, p.program_id, p.trace, p.module, "search", position=position)
            for position, p in enumerate(found)
        ]
        return _Round(task_id, trials, {program.program_id: program.features for program in found})

    def _building(self, rounds: list[_Round]) -> _Wave:
        proposed = [trial for one in rounds for trial in one.trials]
        missing = [trial for trial in proposed if trial.program_id not in self._done]
        return _Wave(rounds, missing, self._means.trials.build(missing))

    def _take_over(self, task_id: str) -> None:
        """One more program of a task whose sibling has found a faster one since its last round."""
        examples = faster_siblings(self._workloads, task_id, self._known)
        if not examples:
            return
        job = self._job(task_id, 1, self._means.seed, examples, only_adapted=True)
        (found,) = self._means.searchers.propose([job], b"")
        if found:
            self._finish(self._building([self._round(task_id, "sibling", found)]))

    def _measure(self, wave: _Wave) -> list[Program]:
        return self._means.trials.measure(wave.missing, wave.libraries.result())

    def _finish(self, wave: _Wave) -> None:
        measured = self._measure(wave) if wave.measured is None else wave.measured.result()
        self._done |= {program.program_id: program for program in measured}
        for one in wave.rounds:
            programs = [self._done[trial.program_id] for trial in one.trials]
            self._known[one.task_id] += programs
            self._progress[one.task_id].latencies_ms += [p.latency_ms for p in programs]
            self._means.learning.learn(programs, one.features)

    def _measure_untuned(self, workload: Workload) -> None:
        """A task none of whose programs ran is measured as the compiler leaves it."""
        identity = program_id(workload.task.task_id, _UNTUNED)
        if identity in self._done:
            return
        module = str(save_json(self._means.space.replay(workload.module, _UNTUNED).mod))
        batch = f"{self._prefixes[workload.task.task_id]}untuned"
        trial = Trial(workload, batch, identity, _UNTUNED, module, "search")
        self._means.trials.measure([trial], self._means.trials.build([trial]).result())


def _split(
    stored: dict[str, list[Program]], prefixes: tuple[str, ...]
) -> tuple[dict[str, list[Program]], dict[str, Program]]:
    """What was stored before the works whose batches have ``prefixes``, and what by themselves."""
    before = {
        task_id: [p for p in programs if not p.batch.startswith(prefixes)]
        for task_id, programs in stored.items()
    }
    own = {
        p.program_id: p
        for programs in stored.values()
        for p in programs
        if p.batch.startswith(prefixes)
    }
    return before, own
