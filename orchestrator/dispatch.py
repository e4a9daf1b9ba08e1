"""The dispatcher: the only one that acts. It has work done and stores the outcomes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.policies.retry import Failure, FailureClass, decide
from orchestrator.store.base import Ledger
from schemas.base import Schema
from schemas.config import RunConfig
from schemas.record import WorkRecord
from schemas.work import FineTuneWork, Outcome, PrepareWork, UniformWork, Work

DEVICE_WORK_TIMEOUT_S = 86_400.0
"""Longest a tuning, screening, comparison or export may take; parts of it end much earlier."""
GRACE_S = 60.0
"""What a worker may need beyond its own time limit, to start and to answer."""
CANCEL_GRACE_S = 10.0
"""How long cancelled work may take to end."""


class Finished(Schema):
    """Work that came to an end: an outcome, or a failure."""

    handle: Hashable
    outcome: Outcome | None = None
    failure: Failure | None = None


class Workers(Protocol):
    """Those who do the work."""

    def submit(self, work: Work) -> Hashable:
        """Begin the work; what it is known by from now on. Returns at once."""
        ...

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Finished]:
        """Those that have come to an end; returns after ``timeout_s`` at the latest."""
        ...

    def cancel(self, handles: Sequence[Hashable]) -> None:
        """Ask that work to end early. ``wait`` need not report it any more."""
        ...

    def close(self) -> None:
        """End everything that was begun, within seconds."""
        ...


class Settled(Schema):
    """Work the dispatcher is done with: stored in the ledger, or given up with a reason."""

    key: str
    error: str = ""
    wrong_input: bool = False


@dataclass
class _Job:
    work: Work
    failures: Counter[FailureClass] = field(default_factory=Counter)
    handle: Hashable = None
    began_s: float = 0.0
    not_before_s: float = 0.0


class Dispatcher:
    """Runs the work that is wanted: training side by side, device work one by one per target."""

    def __init__(
        self,
        workers: Workers,
        ledger: Ledger,
        config: RunConfig,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = workers
        self._ledger = ledger
        self._config = config
        self._report = report
        self._clock = clock
        self._queue: dict[str, _Job] = {}
        self._flying: dict[Hashable, _Job] = {}
        self.finished = ledger.finished_keys()

    @property
    def busy(self) -> bool:
        """Whether any work is in flight."""
        return bool(self._flying)

    def want_only(self, works: Iterable[Work]) -> None:
        """See to it that this work gets done, the first ones first.

        Work known already is not begun again. What waits and is not wanted any more is forgotten;
        what is in flight goes on.
        """
        flying = {job.work.key for job in self._flying.values()}
        self._queue = {
            work.key: self._queue.get(work.key) or _Job(work)
            for work in works
            if work.key not in self.finished | flying
        }

    def poll(self, timeout_s: float) -> list[Settled]:
        """Begin what there is room for, wait for what ends first, store it."""
        self._begin()
        if not self._flying:
            waits = [job.not_before_s - self._clock() for job in self._queue.values()]
            time.sleep(max(0.0, min([timeout_s, *waits])))
            return []
        settled = []
        for finished in self._workers.wait(list(self._flying), timeout_s):
            job = self._flying.pop(finished.handle)
            if finished.outcome is not None:
                settled.append(self._store(job, finished.outcome))
            else:
                failure = finished.failure or Failure(kind="internal_error", message="no outcome")
                settled += self._failed(job, failure)
        return settled + self._overdue()

    def drop(self) -> None:
        """Forget the work that has not begun."""
        self._queue.clear()

    def abandon(self, wanted: Iterable[Work]) -> None:
        """Forget and cancel the work that is not among the wanted."""
        keys = {work.key for work in wanted}
        self._queue = {key: job for key, job in self._queue.items() if key in keys}
        self._cancel([job for job in self._flying.values() if job.work.key not in keys])

    def cancel(self) -> None:
        """Cancel all work in flight; what ends well nevertheless, within a grace, is kept."""
        self.drop()
        self._workers.cancel(list(self._flying))
        until = self._clock() + CANCEL_GRACE_S
        while self._flying and self._clock() < until:
            for finished in self._workers.wait(list(self._flying), until - self._clock()):
                job = self._flying.pop(finished.handle)
                if finished.outcome is not None:
                    self._store(job, finished.outcome)
        self._flying.clear()

    def _begin(self) -> None:
        for key, job in list(self._queue.items()):
            if job.not_before_s <= self._clock() and self._has_room(job.work):
                del self._queue[key]
                job.began_s = self._clock()
                job.handle = self._workers.submit(job.work)
                self._flying[job.handle] = job

    def _has_room(self, work: Work) -> bool:
        place = _place(work)
        taken = sum(_place(job.work) == place for job in self._flying.values())
        return taken < (self._config.fine_tune.max_parallel if place is None else 1)

    def _store(self, job: _Job, outcome: Outcome) -> Settled:
        self._ledger.add_work(
            WorkRecord(
                work=job.work,
                outcome=outcome,
                finished_at=time.time(),
                seconds=max(0.0, self._clock() - job.began_s),
            )
        )
        self.finished.add(job.work.key)
        return Settled(key=job.work.key)

    def _failed(self, job: _Job, failure: Failure) -> list[Settled]:
        job.failures[failure.kind] += 1
        decision = decide(failure, job.failures[failure.kind])
        self._report(f"{_name(job.work)}: {decision.message}")
        if not decision.again:
            wrong = failure.kind == "user_error"
            return [Settled(key=job.work.key, error=failure.message, wrong_input=wrong)]
        job.not_before_s = self._clock() + decision.delay_s
        self._queue[job.work.key] = job
        return []

    def _overdue(self) -> list[Settled]:
        late = [
            job
            for job in self._flying.values()
            if self._clock() - job.began_s > deadline_s(job.work, self._config)
        ]
        self._cancel(late)
        settled = []
        for job in late:
            limit = deadline_s(job.work, self._config)
            message = f"{_name(job.work)} did not answer within {limit:g} s"
            settled += self._failed(job, Failure(kind="timed_out", message=message))
        return settled

    def _cancel(self, jobs: Sequence[_Job]) -> None:
        if jobs:
            self._workers.cancel([job.handle for job in jobs])
        for job in jobs:
            self._flying.pop(job.handle)


def is_training(work: Work) -> bool:
    """Whether the work trains, and so needs no device."""
    return isinstance(work, PrepareWork | UniformWork | FineTuneWork)


def deadline_s(work: Work, config: RunConfig) -> float:
    """How long the work may take, trainings with their wait for others: those may share one GPU."""
    if is_training(work):
        return config.train.timeout_s * config.fine_tune.max_parallel + GRACE_S
    return DEVICE_WORK_TIMEOUT_S + GRACE_S


def _place(work: Work) -> str | None:
    """Where the work queues: None for the trainers, else the target whose device it takes."""
    if isinstance(work, PrepareWork | UniformWork | FineTuneWork):
        return None
    return work.target


def _name(work: Work) -> str:
    place = _place(work)
    name = work.kind.replace("_", " ")
    return name if place is None else f"{place}: {name}"
