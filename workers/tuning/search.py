"""One round of search: from what was measured of a task to the programs to measure next.

A round is a function of its arguments: the same records, seed and cost model give the same
programs. A run that was killed in the middle of a round therefore finds the same programs again,
and measures only those it has no measurement of.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from schemas.table import Program
from workers.compiling.programs import ScheduleSpace, program_id, trace_text
from workers.compiling.spaces import space_generator
from workers.compiling.trace import uses_threads, with_decisions_of
from workers.compiling.workload import Workload
from workers.tuning.finalists import THREADS_MATTER_MS

_EXAMPLES = 2
"""So many programs of a round are at most taken over from other tasks."""
_FEW_MACS = 250_000
"""Multiplications that one core may do in the time that starting threads takes, about."""
_LOGGER = logging.getLogger("cprune.tvm")
_LOGGER.addHandler(logging.NullHandler())
_LOGGER.propagate = False


@dataclass(frozen=True)
class Proposal:
    """A program that was not measured yet."""

    program_id: str
    trace: str
    schedule: Schedule


class Search:
    """MetaSchedule's evolutionary search, one round at a time, for the tasks of one target."""

    def __init__(self, space: ScheduleSpace, population_size: int, generations: int) -> None:
        self._space = space
        self._population_size = population_size
        self._generations = generations

    def propose(
        self,
        workload: Workload,
        measured: list[Program],
        count: int,
        seed: int,
        cost_model: ms.CostModel,
        examples: Sequence[str] = (),
    ) -> list[Proposal]:
        """At most ``count`` programs of the task that are not in ``measured``.

        First at most ``_EXAMPLES`` with the decisions of ``examples``, other tasks' traces. Of a
        small task, the fastest program on one core comes next, and at first every program also on
        one core. Fewer, or none, when the design space holds no more.
        """
        module, task_id = workload.module, workload.task.task_id
        usable = [program for program in measured if program.measurement is not None]
        database = ms.database.MemoryDatabase()
        committed = database.commit_workload(module)
        for program in usable:
            database.commit_tuning_record(
                ms.database.TuningRecord(
                    self._space.replayed_trace(module, program.trace),
                    committed,
                    [program.latency_ms / 1000],
                    self._space.target,
                )
            )
        np.random.seed(seed)  # an untrained XGBModel predicts from numpy's global generator
        context = self.context(task_id, module, seed)
        wanted = count + len(usable)
        design_spaces = context.generate_design_space()
        context.pre_tuning(
            max_trials=wanted,
            num_trials_per_iter=wanted,
            design_spaces=design_spaces,
            database=database,
            cost_model=cost_model,
        )
        candidates = context.generate_measure_candidates() or []
        context.post_tuning()
        found = [candidate.sch for candidate in candidates]
        if usable:
            fastest = min(usable, key=lambda program: program.latency_ms)
            if fastest.latency_ms < THREADS_MATTER_MS:
                found = [*self._on_one_core(module, fastest.trace), *found]
        elif workload.task.macs < _FEW_MACS:
            found = [
                one
                for schedule in found
                for one in (schedule, *self._on_one_core(module, trace_text(schedule)))
            ]
        known = {program.program_id for program in measured}
        taken_over = self._unknown(task_id, self._adapted(workload, design_spaces, examples), known)
        proposals = list(itertools.islice(taken_over, min(count, _EXAMPLES)))
        proposals += itertools.islice(
            self._unknown(task_id, iter(found), known), count - len(proposals)
        )
        return proposals

    def propose_adapted(
        self, workload: Workload, measured: list[Program], seed: int, examples: Sequence[str]
    ) -> list[Proposal]:
        """The first program with the decisions of an example that is not in ``measured``."""
        task_id = workload.task.task_id
        design_spaces = self.context(task_id, workload.module, seed).generate_design_space()
        known = {program.program_id for program in measured}
        adapted = self._adapted(workload, design_spaces, examples)
        return list(itertools.islice(self._unknown(task_id, adapted, known), 1))

    def _unknown(
        self, task_id: str, schedules: Iterator[Schedule], known: set[str]
    ) -> Iterator[Proposal]:
        """Those that are not in ``known``, which they are put into."""
        for schedule in schedules:
            trace = trace_text(schedule)
            identity = program_id(task_id, trace)
            if identity not in known:
                known.add(identity)
                yield Proposal(identity, trace, schedule)

    def _on_one_core(self, module: IRModule, trace: str) -> list[Schedule]:
        schedule = self._space.on_one_core(module, trace)
        return [] if schedule is None else [schedule]

    def _adapted(
        self, workload: Workload, design_spaces: Sequence[Schedule], examples: Sequence[str]
    ) -> Iterator[Schedule]:
        """The task's own structures with the decisions of the examples, where they apply."""
        module = workload.module
        for example in examples:
            for own in design_spaces:
                text = with_decisions_of(trace_text(own), example)
                if text is None:
                    continue
                for schedule in self._space.transplant(module, workload.axes, text, 1):
                    alone = (
                        []
                        if uses_threads(example)
                        else self._on_one_core(module, trace_text(schedule))
                    )
                    yield alone[0] if alone else schedule

    def context(self, task_id: str, module: IRModule, seed: int) -> ms.TuneContext:
        """A fresh tuning context of the task; one search thread, so that it is reproducible."""
        return ms.TuneContext(
            mod=module,
            target=self._space.target,
            space_generator=space_generator(module),
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=self._population_size,
                genetic_num_iters=self._generations,
                init_min_unmeasured=min(16, self._population_size // 2),
            ),
            task_name=task_id[:12],
            rand_state=1
            + (seed + int(hashlib.sha256(task_id.encode()).hexdigest()[:8], 16)) % (2**31 - 2),
            num_threads=1,
            logger=_LOGGER,
        )


def target_of(description: dict[str, object]) -> Target:
    """The TVM target of a configuration's dictionary."""
    return tvm.target.Target(description)
