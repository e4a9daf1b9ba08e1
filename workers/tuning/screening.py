"""Screening candidates: their parent's programs transplanted to the new widths and measured.

A handful of builds and some milliseconds of device time for each changed task. A task whose
transplants are poor, which happens where the vector factor had to change, gets a short search.
Policies for comparison, and an ablation, have all changed tasks searched instead.

Candidates of a round are screened together: what they need is built as one batch, measured on all
devices there are, and searched by one schedule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from schemas.config import TuneConfig
from schemas.network import Trained
from schemas.table import Program, Subgraph
from schemas.work import Screened, ScreenWork, Tuned, TuneWork
from workers.compiling.programs import ScheduleSpace, trace_text
from workers.compiling.workload import Workload
from workers.measuring.gauge import Gauge
from workers.tuning.bundle import Bundle, Bundles
from workers.tuning.call_sites import counterparts
from workers.tuning.finalists import THREADS_MATTER_MS
from workers.tuning.stored import fastest, representatives, share_of_origin, task_latency
from workers.tuning.trials import Alongside, Counts, Trial, Trials, trial_of
from workers.tuning.tuner import Tuner


@dataclass(eq=False)
class _Screening:
    """A candidate that is being screened.

    ``parents``: the programs of its parent's tasks. ``pairs``: its call sites and those of its
    parent; None where they do not go together. ``moved``: the tasks that are transplanted for it ->
    the parent's tasks they come from. ``search``: what is searched for it.
    """

    work: ScreenWork
    parent: Bundle
    parents: dict[str, list[Program]]
    bundle: Bundle
    pairs: list[tuple[Subgraph, Subgraph]] | None
    moved: dict[str, str] = field(default_factory=dict)
    search: TuneWork | None = None

    @property
    def origins(self) -> dict[str, str]:
        """Each of its tasks -> the parent's task at the same call site."""
        return {own.task_id: before.task_id for own, before in self.pairs or ()}

    @property
    def is_transplanted(self) -> bool:
        return self.work.by == "transplant"

    @property
    def keys(self) -> list[str]:
        """Of the works under which its programs are stored."""
        return [self.work.key, *([self.search.key] if self.search else [])]


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

    def screen(self, works: Sequence[ScreenWork]) -> list[Screened]:
        """Find programs for what the candidates change, and say how they compare with their
        parents."""
        began, device_s = time.monotonic(), self._gauge.device_s
        screenings = [self._screening(work) for work in works]
        keys = {work.key for work in works}
        self._transplant([one for one in screenings if one.is_transplanted])
        for one in screenings:
            if one.is_transplanted:
                one.search = self._poor_search(one, keys)
            else:
                one.search = self._whole_search(one)
                one.parents = _without(one.parents, one.search.key)
        searches = [(one.search, one.bundle) for one in screenings if one.search is not None]
        if searches:
            self._tuner.search_all(searches)
        counts = self._counts(screenings)
        for one in screenings:
            if not one.is_transplanted:
                self._tuner.check_fastest(one.bundle)
        self._gauge.release()
        spent = self._gauge.device_s - device_s, time.monotonic() - began
        return [
            self._verdict(one, self._tuned(one, own, counts, *spent))
            for one, own in zip(screenings, counts, strict=True)
        ]

    def _screening(self, work: ScreenWork) -> _Screening:
        with self._working():
            parent = self._bundles.of_structure(work.candidate.parent.structure)
            bundle = self._bundles.of_structure(work.candidate.structure)
        pairs = counterparts(bundle.table, parent.table)
        return _Screening(work, parent, self._tuner.stored(parent), bundle, pairs)

    def _counts(self, screenings: Sequence[_Screening]) -> list[Counts]:
        """What was measured for each, interrupted attempts included; for equal works once."""
        counts, counted = [], set[str]()
        for one in screenings:
            counts.append(self._tuner.counted(one.bundle, *(set(one.keys) - counted)))
            counted.update(one.keys)
        return counts

    def _tuned(
        self,
        one: _Screening,
        own: Counts,
        counts: Sequence[Counts],
        device_s: float,
        wall_s: float,
    ) -> Tuned:
        """Its programs, and its share of what all took: by the programs that were tried for it."""
        tried = sum(each.tried for each in counts)
        share = own.tried / tried if tried else 1.0 / len(counts)
        return self._tuner.summary(
            one.bundle,
            measured=own.measured,
            failed=own.failed,
            device_s=share * device_s,
            wall_s=share * wall_s,
        )

    def _whole_search(self, one: _Screening) -> TuneWork:
        """Of the changed tasks, or of all of them once more, whoever has searched them before."""
        every = one.work.by == "search_all"
        changed = tuple(t for t in one.bundle.task_ids if t not in one.parents)
        return TuneWork(
            target=one.work.target,
            network=_network(one.work),
            trials_per_task=one.work.trials_per_task,
            added_trials=every,
            counts_shared=not every,
            tasks=None if every else changed,
        )

    def _transplant(self, screenings: Sequence[_Screening]) -> None:
        """Build and measure the transplants that these need, each task's for the first one that
        has it, beside the programs they were taken from."""
        rows = self._rows(screenings)
        if not rows:
            return
        trials = [trial for origin, moved in rows for trial in (origin, *moved)]
        libraries = iter(self._trials.build(trials).result())
        self._trials.measure_beside(
            [
                Alongside(next(libraries), moved, [next(libraries) for _ in moved])
                for _, moved in rows
            ]
        )

    def _rows(self, screenings: Sequence[_Screening]) -> list[tuple[Trial, list[Trial]]]:
        """The program that transplants were taken from, and they; a row for each changed task."""
        keys = {one.work.key for one in screenings}
        taken: set[str] = set()
        rows = []
        for one in screenings:
            own = self._tuner.stored(one.bundle)
            for task_id, parent_id in one.origins.items():
                earlier = [p for p in own[task_id] if p.batch not in keys and not p.is_shared]
                if task_id in taken or task_id in one.parents:
                    continue
                if any(program.source == "transplant" for program in earlier):
                    continue
                taken.add(task_id)
                one.moved[task_id] = parent_id
                known = {program.program_id for program in own[task_id]}
                trials = self._transplants(
                    one.bundle.workloads[task_id], one.parents[parent_id], one.work.key
                )
                trials = [trial for trial in trials if trial.program_id not in known]
                if trials:
                    rows.append((self._origin(one, parent_id, trials[0]), trials))
        return rows

    def _origin(self, one: _Screening, parent_id: str, trial: Trial) -> Trial:
        """The program that a transplant was taken from, to be measured once more."""
        origin = one.parent.workloads[parent_id]
        taken = next(p for p in one.parents[parent_id] if p.program_id == trial.parent)
        schedule = self._space.replay(origin.module, taken.trace)
        return trial_of(origin, trial.batch, schedule, taken.source)

    def _poor_search(self, one: _Screening, keys: Collection[str]) -> TuneWork | None:
        """Of those of the changed tasks that have no good transplant; None where all have.

        ``keys``: of all works that are done together.
        """
        if not self._config.retune_trials_per_task:
            return None
        own = self._tuner.stored(one.bundle)
        poor = []
        for task_id, parent_id in one.moved.items():
            # Whatever else is stored: the verdict stays when the work is taken up again.
            given = [p for p in own[task_id] if p.batch in keys or p.is_shared]
            share = share_of_origin(given, one.parents[parent_id])
            before = one.parent.workloads[parent_id].task.macs
            most = (
                (1.0 + one.bundle.workloads[task_id].task.macs / before) / 2.0
                if before
                else math.inf
            )
            if not 0.0 < share <= most:
                poor.append(task_id)
        if not poor:
            return None
        return TuneWork(
            target=one.work.target,
            network=_network(one.work),
            trials_per_task=self._config.retune_trials_per_task,
            added_trials=True,
            tasks=tuple(poor),
        )

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

    def _verdict(self, one: _Screening, tuned: Tuned) -> Screened:
        parent, parents, bundle = one.parent, one.parents, one.bundle
        by_themselves = {
            task_id: task_latency(task_id, programs).latency_ms
            for task_id, programs in parents.items()
        }
        costs = {**by_themselves, **one.work.costs_ms}
        parent_ms = sum(costs[task_id] * parent.table.weight(task_id) for task_id in parents)
        found, origins = self._tuner.stored(bundle), one.origins
        if one.pairs is None:
            return Screened(
                candidate_id=one.work.candidate.candidate_id,
                tuned=None,
                refused="its call sites do not go with those of its parent",
                parent_ms=parent_ms,
                candidate_ms=parent_ms,
            )
        estimates = {  # of a task that did not change, its cost as it was
            task_id: costs[origins[task_id]]
            * share_of_origin(found[task_id], parents[origins[task_id]])
            for task_id in bundle.task_ids
        }
        candidate_ms = sum(
            estimates[task_id] * bundle.table.weight(task_id) for task_id in bundle.task_ids
        )
        missing = [entry.task_id for entry in tuned.latencies if entry.program_id is None]
        slower = [
            own.module
            for own, before in one.pairs
            if own.module is not None
            and (own.task_id in missing or estimates[own.task_id] > costs[before.task_id])
        ]
        names = [bundle.workloads[task_id].task.name for task_id in missing]
        return Screened(
            candidate_id=one.work.candidate.candidate_id,
            tuned=tuned,
            refused=f"no program of {', '.join(names)} runs" if names else "",
            parent_ms=parent_ms,
            candidate_ms=candidate_ms,
            slower=tuple(slower),
        )


def _network(work: ScreenWork) -> Trained:
    """The candidate's network: its structure is what counts, the weights are its parent's."""
    return work.candidate.parent.model_copy(update={"structure": work.candidate.structure})


def _without(parents: dict[str, list[Program]], key: str) -> dict[str, list[Program]]:
    """Without what the work of this key measured before it was interrupted: tasks that did not
    change are the parent's, too."""
    return {
        task_id: [program for program in programs if program.batch.split("/")[0] != key]
        for task_id, programs in parents.items()
    }
