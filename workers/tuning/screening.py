"""Screening a candidate: its parent's programs transplanted to the new widths and measured.

A handful of builds and some milliseconds of device time for each changed task. A task whose
transplants are poor, which happens where the vector factor had to change, gets a short search.
Policies for comparison, and an ablation, have all changed tasks searched instead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from schemas.config import TuneConfig
from schemas.network import Trained
from schemas.table import Program
from schemas.work import Screened, ScreenWork, Tuned, TuneWork
from workers.compiling.programs import ScheduleSpace, trace_text
from workers.compiling.workload import Workload
from workers.measuring.gauge import Gauge
from workers.tuning.bundle import Bundle, Bundles
from workers.tuning.finalists import THREADS_MATTER_MS
from workers.tuning.stored import fastest, representatives, task_latency
from workers.tuning.trials import Counts, Trial, Trials, trial_of
from workers.tuning.tuner import Tuner


class Screener:
    """Screens candidates on one target's device."""

    def __init__(
        self,
        bundles: Bundles,
        space: ScheduleSpace,
        tuner: Tuner,
        trials: Trials,
        gauge: Gauge,
        config: TuneConfig,
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._bundles = bundles
        self._space = space
        self._tuner = tuner
        self._trials = trials
        self._gauge = gauge
        self._config = config
        self._working = working

    def screen(self, work: ScreenWork) -> Screened:
        """Find programs for what the candidate changes, and say how it compares with its parent."""
        began, device_s = time.monotonic(), self._gauge.device_s
        counts = self._trials.counts
        measured, failed = counts.measured, counts.failed
        candidate = work.candidate
        with self._working():
            parent = self._bundles.of_structure(candidate.parent.structure)
            bundle = self._bundles.of_structure(candidate.structure)
        parents = self._tuner.stored(parent)
        before = [self._tuner.begun(bundle, work.key)]
        if work.by == "transplant":
            before.append(self._transplanted(work, parent, parents, bundle))
        else:
            before.append(self._searched(work, parents, bundle))
        self._gauge.release()
        tuned = self._tuner.summary(
            bundle,
            measured=counts.measured - measured + sum(counted.measured for counted in before),
            failed=counts.failed - failed + sum(counted.failed for counted in before),
            device_s=self._gauge.device_s - device_s,
            wall_s=time.monotonic() - began,
        )
        return self._verdict(work, parent, parents, bundle, tuned)

    def _searched(
        self, work: ScreenWork, parents: dict[str, list[Program]], bundle: Bundle
    ) -> Counts:
        """Search the changed tasks, or all of them once more, whoever has searched them before.

        Returns what an interrupted attempt at that had measured.
        """
        every = work.by == "search_all"
        search = TuneWork(
            target=work.target,
            network=_network(work),
            trials_per_task=work.trials_per_task,
            added_trials=every,
            counts_shared=not every,
            tasks=None if every else tuple(t for t in bundle.task_ids if t not in parents),
        )
        before = self._tuner.begun(bundle, search.key)
        self._tuner.tune_bundle(search, bundle)
        return before

    def _transplanted(
        self,
        work: ScreenWork,
        parent: Bundle,
        parents: dict[str, list[Program]],
        bundle: Bundle,
    ) -> Counts:
        own = self._tuner.stored(bundle)
        tried = []
        for task_id, parent_id in _origins(parent, bundle).items():
            earlier = [p for p in own[task_id] if p.batch != work.key and not p.is_shared]
            if task_id in parents or any(p.source == "transplant" for p in earlier):
                continue
            tried.append((task_id, parent_id))
            workload = bundle.workloads[task_id]
            trials = self._transplants(workload, parents[parent_id], work.key)
            known = {program.program_id for program in own[task_id]}
            trials = [trial for trial in trials if trial.program_id not in known]
            if trials:
                self._measure(parent.workloads[parent_id], parents[parent_id], trials)

        if not self._config.retune_trials_per_task:
            return Counts()
        return self._search_poor(work, parent, parents, bundle, tried)

    def _search_poor(
        self,
        work: ScreenWork,
        parent: Bundle,
        parents: dict[str, list[Program]],
        bundle: Bundle,
        tried: list[tuple[str, str]],
    ) -> Counts:
        """Search those of the changed tasks (with their parent's) that have no good transplant.

        Returns what an interrupted attempt at that had measured.
        """
        own = self._tuner.stored(bundle)
        poor = []
        for task_id, parent_id in tried:
            # Whatever else is stored: the verdict stays when the work is taken up again.
            given = [p for p in own[task_id] if p.batch == work.key or p.is_shared]
            share = _share_of_origin(given, parents[parent_id])
            before = parent.workloads[parent_id].task.macs
            most = (
                (1.0 + bundle.workloads[task_id].task.macs / before) / 2.0 if before else math.inf
            )
            if not 0.0 < share <= most:
                poor.append(task_id)
        if not poor:
            return Counts()
        search = TuneWork(
            target=work.target,
            network=_network(work),
            trials_per_task=self._config.retune_trials_per_task,
            added_trials=True,
            tasks=tuple(poor),
        )
        before = self._tuner.begun(bundle, search.key)
        self._tuner.search(search, bundle)
        return before

    def _measure(self, origin: Workload, programs: list[Program], trials: list[Trial]) -> None:
        """Measure transplants beside the program they were taken from."""
        taken = next(program for program in programs if program.program_id == trials[0].parent)
        schedule = self._space.replay(origin.module, taken.trace)
        again = trial_of(origin, trials[0].batch, schedule, taken.source)
        beside, *libraries = self._trials.build([again, *trials]).result()
        self._trials.measure(trials, libraries, beside=beside)
        beside.path.unlink(missing_ok=True)

    def _transplants(self, workload: Workload, programs: list[Program], batch: str) -> list[Trial]:
        """Variants of the parent's fastest program; where its vector factor does not divide the new
        width, of the fastest one whose factor does, if there is one nearly as fast.

        Of a small task the likeliest variant is tried on one core, too.
        """
        best = fastest(programs)
        if best is None:
            return []
        lineage = task_latency(best.task_id, programs).lineage_trials
        axes = workload.axes
        width = 0 if axes.output is None else axes.extents[axes.output]
        others = representatives(programs)
        keeping = [p for p in others if p.channel_tiles and width % p.channel_tiles[-1] == 0]
        for origin in dict.fromkeys([*keeping, best, *others]):
            with self._working():
                schedules = self._space.transplant(
                    workload.module, workload.axes, origin.trace, self._config.transplant_variants
                )
                if schedules and best.latency_ms < THREADS_MATTER_MS:
                    alone = self._space.on_one_core(workload.module, trace_text(schedules[0]))
                    schedules += [] if alone is None else [alone]
            if schedules:
                return [
                    replace(
                        trial_of(workload, batch, schedule, "transplant"),
                        parent=origin.program_id,
                        lineage_trials=lineage,
                        position=position,
                    )
                    for position, schedule in enumerate(schedules)
                ]
        return []

    def _verdict(
        self,
        work: ScreenWork,
        parent: Bundle,
        parents: dict[str, list[Program]],
        bundle: Bundle,
        tuned: Tuned,
    ) -> Screened:
        by_themselves = {
            task_id: task_latency(task_id, programs).latency_ms
            for task_id, programs in parents.items()
        }
        costs = {**by_themselves, **work.costs_ms}
        parent_ms = sum(costs[task_id] * parent.table.weight(task_id) for task_id in parents)
        found = self._tuner.stored(bundle)
        origins = _origins(parent, bundle)
        estimates = {  # of a task that did not change, its cost as it was
            task_id: costs[origins[task_id]]
            * _share_of_origin(found[task_id], parents[origins[task_id]])
            for task_id in bundle.task_ids
        }
        candidate_ms = sum(
            estimates[task_id] * bundle.table.weight(task_id) for task_id in bundle.task_ids
        )
        missing = [entry.task_id for entry in tuned.latencies if entry.program_id is None]
        slower = [
            own.module
            for own, before in zip(bundle.table.subgraphs, parent.table.subgraphs, strict=True)
            if own.module is not None
            and (own.task_id in missing or estimates[own.task_id] > costs[before.task_id])
        ]
        names = [bundle.workloads[task_id].task.name for task_id in missing]
        return Screened(
            candidate_id=work.candidate.candidate_id,
            tuned=tuned,
            refused=f"no transplant of {', '.join(names)} runs" if names else "",
            parent_ms=parent_ms,
            candidate_ms=candidate_ms,
            slower=tuple(slower),
        )


def _network(work: ScreenWork) -> Trained:
    """The candidate's network: its structure is what counts, the weights are its parent's."""
    return work.candidate.parent.model_copy(update={"structure": work.candidate.structure})


def _share_of_origin(programs: list[Program], origins: list[Program]) -> float:
    """Latency of a task's fastest program over that of the task it comes from.

    A transplant was measured beside the program it was taken from, which need not be the fastest
    one of its task. 0 where either task has no program: then the candidate is refused.
    """
    best, before = fastest(programs), fastest(origins)
    if best is None or before is None:
        return 0.0
    taken = next((p for p in origins if p.program_id == best.parent), None)
    if best.beside_ms is None or taken is None:
        return best.latency_ms / before.latency_ms
    return best.latency_ms / best.beside_ms * taken.latency_ms / before.latency_ms


def _origins(parent: Bundle, bundle: Bundle) -> dict[str, str]:
    """Each task of the candidate -> the parent's task at the same call site."""
    pairs = zip(bundle.table.subgraphs, parent.table.subgraphs, strict=True)
    return {own.task_id: before.task_id for own, before in pairs}
