"""Tuning a network: rounds of search over its tasks until each has its trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from schemas.config import TuneConfig
from schemas.table import Program
from schemas.work import TaskLatency, Tuned, TuneWork
from workers.compiling.programs import ScheduleSpace
from workers.measuring.gauge import Gauge
from workers.protocols import ProgramTable
from workers.tuning.bundle import Bundle, Bundles
from workers.tuning.finalists import finalists
from workers.tuning.learning import Learning
from workers.tuning.rounds import Rounds, Searching
from workers.tuning.searchers import Searchers
from workers.tuning.stored import as_proposed, fastest, task_latency
from workers.tuning.trials import Counts, Trials


class Tuner:
    """Searches programs for the tasks of networks on one target's device."""

    def __init__(
        self,
        bundles: Bundles,
        space: ScheduleSpace,
        searchers: Searchers,
        trials: Trials,
        gauge: Gauge,
        table: ProgramTable,
        config: TuneConfig,
        seed: int,
        working: Callable[[], AbstractContextManager[None]],
        *,
        searches_meanwhile: bool = False,
    ) -> None:
        """``searches_meanwhile``: whether the device has cores of its own, so that one wave is
        measured while the next is searched. The table is then asked from two threads."""
        self._bundles = bundles
        self.space = space
        self._trials = trials
        self._gauge = gauge
        self._table = table
        self._learning = Learning(space.target, searchers, table, seed)
        self._searching = Searching(
            space,
            searchers,
            self._learning,
            trials,
            gauge,
            config,
            seed,
            working,
            searches_meanwhile,
        )

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
        before = self.counted(bundle, work.key)
        self.search(work, bundle)
        self.check_fastest(bundle)
        return self.summary(
            bundle,
            measured=counts.measured - measured + before.measured,
            failed=counts.failed - failed + before.failed,
            device_s=self._gauge.device_s - device_s,
            wall_s=time.monotonic() - began,
        )

    def counted(self, bundle: Bundle, *keys: str) -> Counts:
        """What has been measured so far by works of these keys, interrupted attempts included."""
        programs = [
            program
            for own in self.stored(bundle).values()
            for program in own
            if program.batch.split("/")[0] in keys
        ]
        measured = sum(program.measurement is not None for program in programs)
        return Counts(measured=measured, failed=len(programs) - measured)

    def summary(
        self, bundle: Bundle, *, measured: int, failed: int, device_s: float, wall_s: float
    ) -> Tuned:
        """The fastest program of each task, as stored now."""
        stored = self.stored(bundle)
        return Tuned(
            device_model=self._gauge.device_model,
            table=bundle.table,
            latencies=self.latencies(bundle),
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

    def latencies(self, bundle: Bundle) -> tuple[TaskLatency, ...]:
        """What the fastest program of each task takes; later runs learn from them, too."""
        stored = self.stored(bundle)
        best = {task_id: fastest(programs) for task_id, programs in stored.items()}
        self._learning.share_tasks(bundle, best, self._trials.measured_as)
        return tuple(task_latency(task_id, stored[task_id]) for task_id in bundle.task_ids)

    def stored(self, bundle: Bundle) -> dict[str, list[Program]]:
        """All programs of the network's tasks, batch by batch as they were proposed."""
        found: dict[str, list[Program]] = {task_id: [] for task_id in bundle.task_ids}
        for program in self._table.programs(bundle.task_ids, self._trials.measured_as):
            found[program.task_id].append(program)
        return {task_id: as_proposed(programs) for task_id, programs in found.items()}

    def search(self, work: TuneWork, bundle: Bundle) -> None:
        """The trials of ``work``, without a look at what the fastest programs compute."""
        self.search_all([(work, bundle)])

    def search_all(self, works: Sequence[tuple[TuneWork, Bundle]]) -> None:
        """``search`` of several networks: their tasks take turns, and learn from one another."""
        stored: dict[str, list[Program]] = {}
        for _, bundle in works:
            stored |= self.stored(bundle)
        Rounds(self._searching, works, stored).run()

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
