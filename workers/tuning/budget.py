"""How many trials each task of a network still has to come, and all of them together.

Programs that a search found count as trials had, whoever measured them, unless the work says that
other runs' do not. Transplants do not: they are where a search begins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from schemas.table import NetworkTable, Program
from schemas.work import TuneWork
from workers.tuning.schedule import TaskProgress

_OTHER_TRIALS = 4  # for tasks without a convolution or matrix product: their spaces are small


@dataclass(frozen=True)
class Budget:
    """The trials of one unit of work. ``known``: task -> programs stored before it."""

    work: TuneWork
    table: NetworkTable
    known: Mapping[str, Sequence[Program]]
    min_trials_per_task: int

    def progress(self) -> list[TaskProgress]:
        """The tasks as the schedule sees them."""
        least = min(self.work.trials_per_task, self.min_trials_per_task)
        return [
            TaskProgress(
                task_id=task.task_id,
                weight=self.table.weight(task.task_id),
                owed=max(0, self._left(task.task_id, least)),
                poolable=self.wants(task.task_id) and not self._is_small(task.task_id),
                latencies_ms=[program.latency_ms for program in self.known[task.task_id]],
            )
            for task in self.table.tasks
        ]

    def total(self, besides: Collection[str] = ()) -> int:
        """Trials over all tasks; those ``besides`` are searched for another work.

        Where other runs have tuned every task, what one of them had beyond its share is what
        another one lacks: they too gave trials to where they paid.
        """
        tasks = [task.task_id for task in self.table.tasks if task.task_id not in besides]
        wanted = [task_id for task_id in tasks if self.wants(task_id)]
        left = [self._left(task_id, self.work.trials_per_task) for task_id in wanted]
        if all(any(program.is_shared for program in self.known[task_id]) for task_id in wanted):
            return max(0, sum(left))
        return sum(max(0, trials) for trials in left)

    def wants(self, task_id: str) -> bool:
        """Whether the work is about this task."""
        modules, work = self.table.modules(task_id), self.work
        if work.tasks is not None and task_id not in work.tasks:
            return False
        return work.modules is None or bool(set(modules) & set(work.modules))

    def _left(self, task_id: str, trials: int) -> int:
        """Of so many trials for each task, those this one has not had; below 0 if it had more."""
        if not self.wants(task_id):
            return 0
        modules = self.table.modules(task_id)
        wanted = max([trials, *(self.work.trials.get(module, 0) for module in modules)])
        if self._is_small(task_id):
            wanted = min(wanted, _OTHER_TRIALS)
        had = [program for program in self.known[task_id] if program.source == "search"]
        if self.work.added_trials:  # to those of this run: what other runs searched is added too
            had = [program for program in had if program.is_shared]
        if not self.work.counts_shared:
            had = [program for program in had if not program.is_shared]
        return wanted - len(had)

    def _is_small(self, task_id: str) -> bool:
        return next(t.kind for t in self.table.tasks if t.task_id == task_id) == "other"
