"""Tuning a network: rounds of search over its tasks until each has its trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from schemas.config import TuneConfig
from schemas.table import Program
from schemas.work import Tuned, TuneWork
from workers.compiling.builder import Library
from workers.compiling.programs import ScheduleSpace, program_id
from workers.compiling.tasks import Workload
from workers.measuring.gauge import Gauge
from workers.protocols import ProgramTable
from workers.tuning.budget import Budget
from workers.tuning.bundle import Bundle, Bundles
from workers.tuning.finalists import finalists
from workers.tuning.learning import Learning
from workers.tuning.relatives import faster_relatives, faster_siblings, siblings
from workers.tuning.schedule import Schedule, TaskProgress
from workers.tuning.search import Proposal, Search
from workers.tuning.stored import as_proposed, fastest, task_latency
from workers.tuning.trials import Trial, Trials

_UNTUNED = "[[],[]]"


@dataclass
class _Round:
    """A round in flight: its programs are being built, then perhaps ``measured`` at once."""

    progress: TaskProgress
    workload: Workload
    batch: str
    trials: list[Trial]
    missing: list[Trial]
    libraries: Future[list[Library]]
    measured: Future[list[Program]] | None = None


class Tuner:
    """Searches programs for the tasks of networks on one target's device."""

    def __init__(
        self,
        bundles: Bundles,
        space: ScheduleSpace,
        trials: Trials,
        gauge: Gauge,
        table: ProgramTable,
        config: TuneConfig,
        seed: int,
        working: Callable[[], AbstractContextManager[None]],
        *,
        searches_meanwhile: bool = False,
    ) -> None:
        """``searches_meanwhile``: whether the device has cores of its own, so that one round is
        measured while the next is searched. The table is then asked from two threads."""
        self._bundles = bundles
        self.space = space
        self._trials = trials
        self._gauge = gauge
        self._table = table
        self._config = config
        self._seed = seed
        self._working = working
        self._searches_meanwhile = searches_meanwhile
        self._search = Search(space, config.population_size, config.generations)
        self._learning = Learning(space, self._search, table, seed)

    def tune(self, work: TuneWork) -> Tuned:
        """Carry out ``work``; what of it is stored already is not repeated."""
        bundle = self._bundles.of_work(work)
        tuned = self.tune_bundle(work, bundle)
        if bundle is not self._bundles.dense:
            return tuned
        others = self._learning.tasks_of_others(bundle, self._trials.measured_as)
        return tuned.model_copy(update={"earlier": others})

    def tune_bundle(self, work: TuneWork, bundle: Bundle) -> Tuned:
        """Carry out ``work`` on a network that is imported already."""
        began, device_s = time.monotonic(), self._gauge.device_s
        counts = self._trials.counts
        measured, failed = counts.measured, counts.failed
        self.search(work, bundle)
        self.check_fastest(bundle)
        return self.summary(
            bundle,
            measured=counts.measured - measured,
            failed=counts.failed - failed,
            device_s=self._gauge.device_s - device_s,
            wall_s=time.monotonic() - began,
        )

    def summary(
        self, bundle: Bundle, *, measured: int, failed: int, device_s: float, wall_s: float
    ) -> Tuned:
        """The fastest program of each task, as stored now."""
        stored = self.stored(bundle)
        best = {task_id: fastest(programs) for task_id, programs in stored.items()}
        self._learning.share_tasks(bundle, best, self._trials.measured_as)
        return Tuned(
            device_model=self._gauge.device_model,
            table=bundle.table,
            latencies=tuple(task_latency(task_id, stored[task_id]) for task_id in bundle.task_ids),
            measured_programs=measured,
            failed_programs=failed,
            device_s=device_s,
            wall_s=wall_s,
            simulated=any(
                program.measurement is not None and program.measurement.simulated
                for programs in stored.values()
                for program in programs
            ),
        )

    def stored(self, bundle: Bundle) -> dict[str, list[Program]]:
        """All programs of the network's tasks, batch by batch as they were proposed."""
        found: dict[str, list[Program]] = {task_id: [] for task_id in bundle.task_ids}
        for program in self._table.programs(bundle.task_ids, self._trials.measured_as):
            found[program.task_id].append(program)
        return {task_id: as_proposed(programs) for task_id, programs in found.items()}

    def search(self, work: TuneWork, bundle: Bundle) -> None:
        """The trials of ``work``, without a look at what the fastest programs compute.

        Round after round, as the schedule has it; one is built, and where the device has cores of
        its own measured, while the next is searched.

        ``known`` holds what a round may know: what was stored before this work, and its own rounds
        before that one. So a round proposes the same programs when the work is taken up again.
        """
        prefix = f"{work.key}/"
        known, done = _split(self.stored(bundle), prefix)
        budget = Budget(work, bundle.table, known, self._config.min_trials_per_task)
        schedule = Schedule(budget.progress(), budget.total(), self._config.round_size)
        began, device_s = time.monotonic(), self._gauge.device_s

        def is_spent() -> bool:
            return self._time_is_spent(time.monotonic() - began, self._gauge.device_s - device_s)

        self._rounds(bundle, schedule, known, done, prefix, is_spent)
        for progress in schedule.tasks:
            if is_spent():
                break
            if budget.wants(progress.task_id):
                self._take_over(bundle, progress, known, done, prefix)
        with self._working():
            for task_id in bundle.task_ids:  # the last rounds, which no other round learned from
                mine = [program for program in known[task_id] if program.program_id in done]
                self._learning.learn(bundle.workloads[task_id], mine)
        for task_id in bundle.task_ids:
            if budget.wants(task_id) and fastest(known[task_id]) is None:
                self._measure_untuned(bundle.workloads[task_id], done, prefix)
        self._gauge.release()

    def _rounds(
        self,
        bundle: Bundle,
        schedule: Schedule,
        known: dict[str, list[Program]],
        done: dict[str, Program],
        prefix: str,
        is_spent: Callable[[], bool],
    ) -> None:
        in_flight: _Round | None = None
        number = 0
        with ThreadPoolExecutor(1, thread_name_prefix="measures") as background:
            while True:
                following = None if is_spent() else schedule.next_round()
                awaited = in_flight is not None and (
                    following is None or following[0] is in_flight.progress
                )
                if in_flight is not None and awaited:
                    self._finish(in_flight, known, done)
                    in_flight = None
                    continue  # what it brought may change who is next
                if following is None:
                    return
                progress, count = following
                number += 1
                batch = f"{prefix}{progress.task_id[:16]}/{number}"
                started = self._start(bundle, progress, known, done, batch, count)
                if started is None:
                    progress.exhausted = True
                    continue
                progress.started += len(started.trials)  # a round may find fewer
                if in_flight is not None:
                    self._finish(in_flight, known, done)
                if self._searches_meanwhile:
                    started.measured = background.submit(self._measure, started)
                in_flight = started

    def _time_is_spent(self, wall_s: float, device_s: float) -> bool:
        limits = ((wall_s, self._config.max_s), (device_s, self._config.max_device_s))
        return any(limit_s is not None and spent >= limit_s for spent, limit_s in limits)

    def _start(
        self,
        bundle: Bundle,
        progress: TaskProgress,
        known: dict[str, list[Program]],
        done: dict[str, Program],
        batch: str,
        count: int,
    ) -> _Round | None:
        """Propose the round's programs and start building those that are not measured yet."""
        task_id = progress.task_id
        workload = bundle.workloads[task_id]
        seed = (self._seed + len(known[task_id])) % (2**31)
        with self._working():
            model = self._learning.fitted(bundle, known, self._trials.measured_as)
            proposals = self._search.propose(
                workload,
                known[task_id],
                count,
                seed,
                model,
                [
                    *siblings(bundle.workloads, task_id, known),
                    *faster_relatives(bundle.workloads, task_id, known),
                ],
            )
        return self._building(progress, workload, batch, proposals, done) if proposals else None

    def _building(
        self,
        progress: TaskProgress,
        workload: Workload,
        batch: str,
        proposals: list[Proposal],
        done: dict[str, Program],
    ) -> _Round:
        """Start building those of the round's programs that are not measured yet."""
        trials = [
            Trial(p.program_id, p.trace, p.schedule, "search", position=position)
            for position, p in enumerate(proposals)
        ]
        missing = [trial for trial in trials if trial.program_id not in done]
        return _Round(progress, workload, batch, trials, missing, self._trials.build(missing))

    def _take_over(
        self,
        bundle: Bundle,
        progress: TaskProgress,
        known: dict[str, list[Program]],
        done: dict[str, Program],
        prefix: str,
    ) -> None:
        """One more program of a task whose sibling has found a faster one since its last round."""
        task_id = progress.task_id
        workload = bundle.workloads[task_id]
        examples = faster_siblings(bundle.workloads, task_id, known)
        if not examples:
            return
        with self._working():
            proposals = self._search.propose_adapted(workload, known[task_id], self._seed, examples)
        if proposals:
            batch = f"{prefix}{task_id[:16]}/sibling"
            self._finish(self._building(progress, workload, batch, proposals, done), known, done)

    def _measure(self, current: _Round) -> list[Program]:
        libraries = current.libraries.result()
        return self._trials.measure(current.workload, current.missing, libraries, current.batch)

    def _finish(
        self, current: _Round, known: dict[str, list[Program]], done: dict[str, Program]
    ) -> None:
        found = current.measured
        measured = self._measure(current) if found is None else found.result()
        done |= {program.program_id: program for program in measured}
        task_id = current.workload.task.task_id
        programs = [done[trial.program_id] for trial in current.trials]
        known[task_id] += programs
        current.progress.latencies_ms += [program.latency_ms for program in programs]

    def check_fastest(self, bundle: Bundle, count: int = 1) -> None:
        """Compare each task's fastest program with the untuned one, until it is a right one.

        ``count``: also the finalists, so many for each task.
        """
        stored = self.stored(bundle)
        while True:
            best = {
                task_id: [fastest(programs), *(finalists(programs, count) if count > 1 else ())]
                for task_id, programs in stored.items()
            }
            suspects = [
                (bundle.workloads[task_id], program)
                for task_id, programs in best.items()
                for program in {p.program_id: p for p in programs if p is not None}.values()
                if program.max_abs_error is None
            ]
            if not suspects:
                break
            for checked in self._trials.check(suspects):
                stored[checked.task_id] = [
                    checked if program.program_id == checked.program_id else program
                    for program in stored[checked.task_id]
                ]
        self._gauge.release()

    def record_inside(self, bundle: Bundle, inside_ms: Mapping[tuple[str, str], float]) -> None:
        """Store what calls take inside the network: by task and program.

        What other programs of such a task took on another occasion is forgotten: it may have been
        at another pace of the device, and only what was taken in turns may be compared.
        """
        watched = {task_id for task_id, _ in inside_ms}
        for task_id, programs in self.stored(bundle).items():
            for program in programs:
                latency_ms = inside_ms.get((task_id, program.program_id))
                if task_id in watched and latency_ms != program.inside_ms:
                    update = {"inside_ms": latency_ms}
                    self._table.record_check(program.model_copy(update=update))

    def _measure_untuned(self, workload: Workload, done: dict[str, Program], prefix: str) -> None:
        """A task none of whose programs ran is measured as the compiler leaves it."""
        identity = program_id(workload.task.task_id, _UNTUNED)
        if identity in done:
            return
        schedule = self.space.replay(workload.module, _UNTUNED)
        trial = Trial(identity, _UNTUNED, schedule, "search")
        libraries = self._trials.build([trial]).result()
        self._trials.measure(workload, [trial], libraries, f"{prefix}untuned")


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
