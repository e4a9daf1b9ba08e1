"""Tuning a network: rounds of search over its tasks until each has its trials."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tvm.s_tir.meta_schedule import CostModel

from schemas.config import TuneConfig
from schemas.table import Program
from schemas.work import TaskLatency, Tuned, TuneWork
from workers.compiling.builder import Library
from workers.compiling.programs import ScheduleSpace, program_id
from workers.compiling.tasks import Workload
from workers.measuring.gauge import Gauge
from workers.protocols import ProgramTable
from workers.tuning.bundle import Bundle, Bundles
from workers.tuning.cost_model import RecordModel
from workers.tuning.search import Search
from workers.tuning.trials import Trial, Trials, fastest

_OTHER_TRIALS = 4  # for tasks without a convolution or matrix product: their spaces are small
_UNTUNED = "[[],[]]"
_NEARLY = 1.5


@dataclass
class _Round:
    """A round in flight: its programs are being built."""

    workload: Workload
    batch: str
    trials: list[Trial]
    missing: list[Trial]
    libraries: Future[list[Library]]


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
    ) -> None:
        self._bundles = bundles
        self.space = space
        self._trials = trials
        self._gauge = gauge
        self._table = table
        self._config = config
        self._seed = seed
        self._working = working
        self._search = Search(space, config.population_size, config.generations)
        self._model = RecordModel()

    def tune(self, work: TuneWork) -> Tuned:
        """Carry out ``work``; what of it is stored already is not repeated."""
        return self.tune_bundle(work, self._bundles.of_work(work))

    def tune_bundle(self, work: TuneWork, bundle: Bundle) -> Tuned:
        """Carry out ``work`` on a network that is imported already."""
        began, device_s = time.monotonic(), self._gauge.device_s
        counts = self._trials.counts
        measured, failed = counts.measured, counts.failed
        self._rounds(work, bundle)
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
        return Tuned(
            device_model=self._gauge.device_model,
            table=bundle.table,
            latencies=tuple(task_latency(task_id, stored[task_id]) for task_id in bundle.task_ids),
            measured_programs=measured,
            failed_programs=failed,
            device_s=device_s,
            wall_s=wall_s,
        )

    def stored(self, bundle: Bundle) -> dict[str, list[Program]]:
        """All programs of the network's tasks, in the order they were stored."""
        found: dict[str, list[Program]] = {task_id: [] for task_id in bundle.task_ids}
        for program in self._table.programs(bundle.task_ids, self._gauge.device_model):
            found[program.task_id].append(program)
        return found

    def _rounds(self, work: TuneWork, bundle: Bundle) -> None:
        """Round after round over the tasks; one is built while the next one is searched.

        ``known`` holds what a round may know: what was stored before this work, and its own rounds
        before that one. So a round proposes the same programs when the work is taken up again.
        """
        prefix = f"{work.key}/"
        known, done = _split(self.stored(bundle), prefix)
        remaining = {
            task_id: self._budget(work, bundle, task_id, len(known[task_id]))
            for task_id in bundle.task_ids
        }
        in_flight: _Round | None = None
        number = 0
        while any(remaining.values()):
            number += 1
            for task_id in bundle.task_ids:
                if remaining[task_id] <= 0:
                    continue
                if in_flight is not None and in_flight.workload.task.task_id == task_id:
                    self._finish(in_flight, known, done)
                    in_flight = None
                count = min(self._config.round_size, remaining[task_id])
                batch = f"{prefix}{task_id[:16]}/{number}"
                following = self._start(bundle, task_id, known, done, batch, count)
                if following is None:
                    remaining[task_id] = 0  # the design space holds no more
                    continue
                remaining[task_id] -= len(following.trials)  # a round may find fewer
                if in_flight is not None:
                    self._finish(in_flight, known, done)
                in_flight = following
        if in_flight is not None:
            self._finish(in_flight, known, done)
        for task_id in bundle.task_ids:
            if self._wanted(work, bundle, task_id) and fastest(known[task_id]) is None:
                self._measure_untuned(bundle.workloads[task_id], done, prefix)
        self._gauge.release()

    def _budget(self, work: TuneWork, bundle: Bundle, task_id: str, before: int) -> int:
        """Trials that this work gives to the task, which had ``before`` when the work began."""
        if not self._wanted(work, bundle, task_id):
            return 0
        modules = bundle.table.modules(task_id)
        wanted = max([work.trials_per_task, *(work.trials.get(module, 0) for module in modules)])
        if bundle.workloads[task_id].task.kind == "other":
            wanted = min(wanted, _OTHER_TRIALS)
        return wanted if work.added_trials else max(0, wanted - before)

    @staticmethod
    def _wanted(work: TuneWork, bundle: Bundle, task_id: str) -> bool:
        modules = bundle.table.modules(task_id)
        return work.modules is None or bool(set(modules) & set(work.modules))

    def _start(
        self,
        bundle: Bundle,
        task_id: str,
        known: dict[str, list[Program]],
        done: dict[str, Program],
        batch: str,
        count: int,
    ) -> _Round | None:
        """Propose the round's programs and start building those that are not measured yet."""
        workload = bundle.workloads[task_id]
        seed = (self._seed + len(known[task_id])) % (2**31)
        with self._working():
            model = self._fitted(bundle, known)
            proposals = self._search.propose(
                task_id, workload.module, known[task_id], count, seed, model
            )
        if not proposals:
            return None
        trials = [
            Trial(proposal.program_id, proposal.trace, proposal.schedule, "search")
            for proposal in proposals
        ]
        missing = [trial for trial in trials if trial.program_id not in done]
        return _Round(workload, batch, trials, missing, self._trials.build(missing))

    def _finish(
        self, current: _Round, known: dict[str, list[Program]], done: dict[str, Program]
    ) -> None:
        measured = self._trials.measure(
            current.workload, current.missing, current.libraries.result(), current.batch
        )
        done |= {program.program_id: program for program in measured}
        task_id = current.workload.task.task_id
        known[task_id] += [done[trial.program_id] for trial in current.trials]

    def _fitted(self, bundle: Bundle, known: dict[str, list[Program]]) -> CostModel:
        """The cost model of the records that a round may know."""
        records: dict[str, dict[str, float]] = {}
        for task_id, programs in known.items():
            workload = bundle.workloads[task_id]
            unknown = [p for p in programs if p.measurement and not self._model.knows(p.program_id)]
            if unknown:
                self._model.add(
                    self._search.context(task_id, workload.module, 1),
                    [(p.program_id, self.space.replay(workload.module, p.trace)) for p in unknown],
                )
            records[task_id] = {p.program_id: p.latency_ms for p in programs}
        return self._model.fitted(records, self._seed)

    def check_fastest(self, bundle: Bundle) -> None:
        """Compare each task's fastest program with the untuned one, until it is a right one."""
        stored = self.stored(bundle)
        while True:
            best = {task_id: fastest(programs) for task_id, programs in stored.items()}
            suspects = [
                (bundle.workloads[task_id], program)
                for task_id, program in best.items()
                if program is not None and program.max_abs_error is None
            ]
            if not suspects:
                break
            for checked in self._trials.check(suspects):
                stored[checked.task_id] = [
                    checked if program.program_id == checked.program_id else program
                    for program in stored[checked.task_id]
                ]
        self._gauge.release()

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


def representatives(programs: list[Program]) -> list[Program]:
    """The fastest program of each vector factor, fastest first.

    Those that take more than ``_NEARLY`` times as long as the fastest are left out.
    """
    best = fastest(programs)
    if best is None:
        return []
    found: dict[int, Program] = {}
    for program in sorted(programs, key=lambda p: (p.latency_ms, p.program_id)):
        near = program.latency_ms <= _NEARLY * best.latency_ms
        if near and program.measurement is not None and program.channel_tiles:
            found.setdefault(program.channel_tiles[-1], program)
    return list(found.values())


def task_latency(task_id: str, programs: list[Program]) -> TaskLatency:
    """The entry of one task; its latency is 0 only when no program ran."""
    best = fastest(programs)
    inherited = max((program.lineage_trials for program in programs), default=0)
    return TaskLatency(
        task_id=task_id,
        program_id=best.program_id if best else None,
        latency_ms=best.latency_ms if best else 0.0,
        channel_tiles=best.channel_tiles if best else (),
        reduction_tiles=best.reduction_tiles if best else (),
        vector_factors=tuple(program.channel_tiles[-1] for program in representatives(programs)),
        trials=len(programs),
        lineage_trials=len(programs) + inherited,
    )
