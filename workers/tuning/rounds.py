"""The rounds of one unit of work: programs are proposed, built and measured until none are owed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from schemas.config import TuneConfig
from schemas.table import Program
from schemas.work import TuneWork
from workers.compiling.builder import Library
from workers.compiling.programs import ScheduleSpace, program_id
from workers.compiling.tasks import Workload
from workers.measuring.gauge import Gauge
from workers.tuning.budget import Budget
from workers.tuning.bundle import Bundle
from workers.tuning.learning import Learning
from workers.tuning.relatives import faster_relatives, faster_siblings, siblings
from workers.tuning.schedule import Schedule
from workers.tuning.search import Proposal, Search
from workers.tuning.stored import fastest
from workers.tuning.trials import Trial, Trials

_UNTUNED = "[[],[]]"


@dataclass(frozen=True)
class Searching:
    """What the rounds of a target's work have in common.

    ``meanwhile``: whether the device has cores of its own, so that one round is measured while the
    next is searched. The table is then asked from two threads.
    """

    space: ScheduleSpace
    search: Search
    learning: Learning
    trials: Trials
    gauge: Gauge
    config: TuneConfig
    seed: int
    working: Callable[[], AbstractContextManager[None]]
    meanwhile: bool


@dataclass
class _Round:
    """A round in flight: its programs are being built, then perhaps ``measured`` at once."""

    workload: Workload
    batch: str
    trials: list[Trial]
    missing: list[Trial]
    libraries: Future[list[Library]]
    measured: Future[list[Program]] | None = None


class Rounds:
    """Carries out the trials of one unit of work, without a look at what programs compute.

    Round after round, as the schedule has it; one is built, and where the device has cores of its
    own measured, while the next is searched. A round knows what was stored before this work and the
    work's own rounds before it, so it proposes the same programs when the work is taken up again.
    """

    def __init__(
        self, means: Searching, work: TuneWork, bundle: Bundle, stored: dict[str, list[Program]]
    ) -> None:
        """``stored``: task -> all its programs, batch by batch, those of this work among them."""
        self._means = means
        self._bundle = bundle
        self._prefix = f"{work.key}/"
        self._known, self._done = _split(stored, self._prefix)
        config = means.config
        self._budget = Budget(work, bundle.table, self._known, config.min_trials_per_task)
        self._schedule = Schedule(self._budget.progress(), self._budget.total(), config.round_size)
        self._progress = {progress.task_id: progress for progress in self._schedule.tasks}
        self._catches_up = bool(work.trials)
        self._began, self._device_s = time.monotonic(), means.gauge.device_s

    def run(self) -> None:
        """All rounds; each program is stored the moment it is measured."""
        with ThreadPoolExecutor(1, thread_name_prefix="measures") as background:
            self._scheduled(background)
        for task_id in self._wanted():
            if self._time_is_spent():
                break
            self._take_over(task_id)
        with self._means.working():
            for task_id in self._bundle.task_ids:  # the last rounds, which no round learned from
                mine = [p for p in self._known[task_id] if p.program_id in self._done]
                self._means.learning.learn(self._bundle.workloads[task_id], mine)
        for task_id in self._wanted():
            if fastest(self._known[task_id]) is None:
                self._measure_untuned(self._bundle.workloads[task_id])
        self._means.gauge.release()

    def _wanted(self) -> list[str]:
        return [task_id for task_id in self._bundle.task_ids if self._budget.wants(task_id)]

    def _scheduled(self, background: ThreadPoolExecutor) -> None:
        in_flight: _Round | None = None
        number = 0
        while True:
            following = None if self._time_is_spent() else self._schedule.next_round()
            if in_flight is not None and (
                following is None or following[0].task_id == in_flight.workload.task.task_id
            ):
                self._finish(in_flight)
                in_flight = None
                continue  # what it brought may change who is next
            if following is None:
                return
            progress, count = following
            number += 1
            started = self._start(progress.task_id, number, count)
            if started is None:
                progress.exhausted = True
                continue
            progress.started += len(started.trials)  # a round may find fewer
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
        return any(limit_s is not None and spent >= limit_s for spent, limit_s in limits)

    def _start(self, task_id: str, number: int, count: int) -> _Round | None:
        """Propose the round's programs and start building those that are not measured yet."""
        means, bundle, known = self._means, self._bundle, self._known
        workloads = bundle.workloads
        with means.working():
            model = means.learning.fitted(bundle, known, means.trials.measured_as)
            proposals = means.search.propose(
                workloads[task_id],
                known[task_id],
                count,
                (means.seed + len(known[task_id])) % (2**31),
                model,
                [
                    *siblings(workloads, task_id, known),
                    *faster_relatives(workloads, task_id, known),
                ],
            )
        return self._building(task_id, str(number), proposals) if proposals else None

    def _building(self, task_id: str, name: str, proposals: list[Proposal]) -> _Round:
        """Start building those of a round's programs that are not measured yet."""
        trials = [
            Trial(p.program_id, p.trace, p.schedule, "search", position=position)
            for position, p in enumerate(proposals)
        ]
        missing = [trial for trial in trials if trial.program_id not in self._done]
        batch = f"{self._prefix}{task_id[:16]}/{name}"
        libraries = self._means.trials.build(missing)
        return _Round(self._bundle.workloads[task_id], batch, trials, missing, libraries)

    def _take_over(self, task_id: str) -> None:
        """One more program of a task whose sibling has found a faster one since its last round."""
        means, known = self._means, self._known[task_id]
        workload = self._bundle.workloads[task_id]
        examples = faster_siblings(self._bundle.workloads, task_id, self._known)
        if not examples:
            return
        with means.working():
            proposals = means.search.propose_adapted(workload, known, means.seed, examples)
        if proposals:
            self._finish(self._building(task_id, "sibling", proposals))

    def _measure(self, current: _Round) -> list[Program]:
        libraries = current.libraries.result()
        return self._means.trials.measure(
            current.workload, current.missing, libraries, current.batch
        )

    def _finish(self, current: _Round) -> None:
        found = current.measured
        measured = self._measure(current) if found is None else found.result()
        self._done |= {program.program_id: program for program in measured}
        task_id = current.workload.task.task_id
        programs = [self._done[trial.program_id] for trial in current.trials]
        self._known[task_id] += programs
        self._progress[task_id].latencies_ms += [program.latency_ms for program in programs]

    def _measure_untuned(self, workload: Workload) -> None:
        """A task none of whose programs ran is measured as the compiler leaves it."""
        identity = program_id(workload.task.task_id, _UNTUNED)
        if identity in self._done:
            return
        schedule = self._means.space.replay(workload.module, _UNTUNED)
        trial = Trial(identity, _UNTUNED, schedule, "search")
        libraries = self._means.trials.build([trial]).result()
        self._means.trials.measure(workload, [trial], libraries, f"{self._prefix}untuned")


def _split(
    stored: dict[str, list[Program]], prefix: str
) -> tuple[dict[str, list[Program]], dict[str, Program]]:
    """What was stored before the work whose batches have ``prefix``, and what it stored itself."""
    before = {
        task_id: [p for p in programs if not p.batch.startswith(prefix)]
        for task_id, programs in stored.items()
    }
    own = {
        p.program_id: p
        for programs in stored.values()
        for p in programs
        if p.batch.startswith(prefix)
    }
    return before, own
