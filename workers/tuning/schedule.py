"""Which task is searched next: trials go where they pay.

Every task first gets the trials it is owed. What is left of the budget goes, round by round, to the
task with the largest expected gain, by the estimate of Ansor's task scheduler (Zheng et al., OSDI
2020, section 6): how fast its program improved lately, and how much it might still improve, judged
by the trials it had. A task that has stopped improving gets no more.

A function of what was measured, so that work that is taken up again goes the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_BACKWARD_SHARE = 0.2
_CONVERGED_ROUNDS = 3
_CONVERGED_GAIN = 0.01


@dataclass
class TaskProgress:
    """What one task had of this work's trials, and what came of them."""

    task_id: str
    weight: int
    """Call sites in the network."""
    owed: int
    """Trials it gets whatever comes of them."""
    poolable: bool
    """Whether it may have more than it is owed."""
    latencies_ms: list[float] = field(default_factory=list)
    """Of every program known, in the order they were measured; infinite where one failed."""
    started: int = 0
    """Trials of this work, with those that are being built."""
    exhausted: bool = False
    """The design space holds no more."""

    def best_ms(self, before: int = 0) -> float:
        """The least latency, without the last ``before`` programs; infinite when there is none."""
        known = self.latencies_ms[: len(self.latencies_ms) - before]
        return min(known, default=math.inf)

    def expected_gain_ms(self, round_size: int) -> float:
        """Milliseconds of the network that one more trial is expected to save."""
        best = self.best_ms()
        before = self.best_ms(before=round_size)
        lately = (before - best) / round_size if math.isfinite(before) else 0.0
        ahead = best / (len(self.latencies_ms) or 1)
        return self.weight * (_BACKWARD_SHARE * lately + (1 - _BACKWARD_SHARE) * ahead)

    def converged(self, round_size: int) -> bool:
        """Whether the last rounds gained next to nothing."""
        lately = _CONVERGED_ROUNDS * round_size
        if len(self.latencies_ms) <= lately:
            return False
        return self.best_ms() > (1 - _CONVERGED_GAIN) * self.best_ms(before=lately)


@dataclass
class Allowance:
    """The trials of one unit of work, over all tasks that are searched for it."""

    tasks: Sequence[TaskProgress]
    total: int

    def left(self, planned: Sequence[tuple[TaskProgress, int]]) -> int:
        """Trials to come, where so many programs of some tasks are planned already."""
        own = {task.task_id for task in self.tasks}
        ahead = sum(count for task, count in planned if task.task_id in own)
        return self.total - sum(task.started for task in self.tasks) - ahead


@dataclass
class Schedule:
    """The rounds of one or several networks' tuning: who is next, and when it ends.

    Each unit of work has an allowance of its own; of all their tasks, each of which belongs to one,
    those come first that are owed trials, then those with the most to gain.
    """

    allowances: Sequence[Allowance]
    round_size: int

    @property
    def tasks(self) -> list[TaskProgress]:
        """The tasks of all allowances."""
        return [task for allowance in self.allowances for task in allowance.tasks]

    def next_rounds(self, count: int = 1) -> list[tuple[TaskProgress, int]]:
        """The next ``count`` tasks and how many programs to ask for; fewer, or none, at the end.

        Tasks with trials owed come first, those with the fewest rounds so far before others.
        """
        chosen: list[tuple[TaskProgress, int]] = []
        while len(chosen) < count:
            following = self._following(chosen)
            if following is None:
                break
            chosen.append(following)
        return chosen

    def _following(
        self, chosen: Sequence[tuple[TaskProgress, int]]
    ) -> tuple[TaskProgress, int] | None:
        """The next one besides those that are chosen already."""
        taken = {task.task_id for task, _ in chosen}
        owing = [
            task
            for task in self.tasks
            if task.task_id not in taken and task.started < task.owed and not task.exhausted
        ]
        if owing:
            task = min(owing, key=lambda t: t.started // self.round_size)
            return task, min(self.round_size, task.owed - task.started)
        promising = [
            (task, left)
            for allowance in self.allowances
            if (left := allowance.left(chosen)) > 0
            for task in allowance.tasks
            if task.task_id not in taken
            and task.poolable
            and not task.exhausted
            and math.isfinite(task.best_ms())
            and not task.converged(self.round_size)
        ]
        if not promising:
            return None
        task, left = max(promising, key=lambda one: one[0].expected_gain_ms(self.round_size))
        return task, min(self.round_size, left)
