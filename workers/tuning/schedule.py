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
class Schedule:
    """The rounds of one network's tuning: who is next, and when it ends."""

    tasks: Sequence[TaskProgress]
    total: int
    """Trials of this work, over all tasks."""
    round_size: int

    def next_rounds(self, count: int = 1) -> list[tuple[TaskProgress, int]]:
        """The next ``count`` tasks and how many programs to ask for; fewer, or none, at the end.

        Tasks with trials owed come first, those with the fewest rounds so far before others.
        """
        chosen: list[tuple[TaskProgress, int]] = []
        while len(chosen) < count:
            taken = {task.task_id for task, _ in chosen}
            others = [task for task in self.tasks if task.task_id not in taken]
            following = self._next_of(others, sum(programs for _, programs in chosen))
            if following is None:
                break
            chosen.append(following)
        return chosen

    def _next_of(
        self, tasks: Sequence[TaskProgress], planned: int
    ) -> tuple[TaskProgress, int] | None:
        """The next one of these tasks, where so many programs are asked of others already."""
        owing = [t for t in tasks if t.started < t.owed and not t.exhausted]
        if owing:
            task = min(owing, key=lambda t: t.started // self.round_size)
            return task, min(self.round_size, task.owed - task.started)
        left = self.total - sum(task.started for task in self.tasks) - planned
        open_tasks = [
            task
            for task in tasks
            if task.poolable
            and not task.exhausted
            and math.isfinite(task.best_ms())
            and not task.converged(self.round_size)
        ]
        if left <= 0 or not open_tasks:
            return None
        task = max(open_tasks, key=lambda t: t.expected_gain_ms(self.round_size))
        return task, min(self.round_size, left)
