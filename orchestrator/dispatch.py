"""The dispatcher: the only one that acts. It has work done and stores the outcomes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.policies.retry import Failure, FailureClass, decide
from orchestrator.store.base import Ledger
from schemas.base import Schema
from schemas.config import RunConfig
from schemas.record import WorkRecord
from schemas.work import FineTuneWork, Outcome, PrepareWork, ScreenWork, UniformWork, Work

DEVICE_WORK_TIMEOUT_S = 86_400.0
"""Longest a tuning, screening, comparison or export may take; parts of it end much earlier."""
GRACE_S = 60.0
"""What a worker may need beyond its own time limit, to start and to answer."""
CANCEL_GRACE_S = 10.0
"""How long cancelled work may take to end."""


class Finished(Schema):
    """Work that came to an end: an outcome for each unit, in their order, or a failure."""

    handle: Hashable
    outcomes: tuple[Outcome, ...] = ()
    failure: Failure | None = None


class Workers(Protocol):
    """Those who do the work."""

    def submit(self, works: Sequence[Work]) -> Hashable:
        """Begin the work, one unit or several screenings of a target, which are done together.

        Returns at once what it is known by from now on.
        """
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


@dataclass(eq=False)
class _Job:
    """A unit of work."""

    work: Work
    failures: Counter[FailureClass] = field(default_factory=Counter)
    not_before_s: float = 0.0


@dataclass(frozen=True)
class _Flight:
    """Work in flight."""

    jobs: tuple[_Job, ...]
    began_s: float

    @property
    def works(self) -> list[Work]:
        return [job.work for job in self.jobs]


class Dispatcher:
    """Runs the work that is wanted: training side by side, device work one by one per target.

    The screenings that are wanted for a target are begun together: they share builds, devices and
    trials. What they find depends on which they are, so none is begun while one of them has to wait
    for another attempt, and all their outcomes are stored or none.
    """

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
        self._flying: dict[Hashable, _Flight] = {}
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
        flying = {work.key for flight in self._flying.values() for work in flight.works}
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
            flight = self._flying.pop(finished.handle)
            if finished.outcomes:
                settled += self._store(flight, finished.outcomes)
            else:
                failure = finished.failure or Failure(kind="internal_error", message="no outcome")
                settled += self._failed(flight, failure)
        return settled + self._overdue()

    def drop(self) -> None:
        """Forget the work that has not begun."""
        self._queue.clear()

    def abandon(self, wanted: Iterable[Work]) -> None:
        """Forget and cancel the work that is not among the wanted."""
        keys = {work.key for work in wanted}
        self._queue = {key: job for key, job in self._queue.items() if key in keys}
        self._cancel(
            {
                handle: flight
                for handle, flight in self._flying.items()
                if not any(work.key in keys for work in flight.works)
            }
        )

    def cancel(self) -> None:
        """Cancel all work in flight; what ends well nevertheless, within a grace, is kept."""
        self.drop()
        self._workers.cancel(list(self._flying))
        until = self._clock() + CANCEL_GRACE_S
        while self._flying and self._clock() < until:
            for finished in self._workers.wait(list(self._flying), until - self._clock()):
                flight = self._flying.pop(finished.handle)
                if finished.outcomes:
                    self._store(flight, finished.outcomes)
        self._flying.clear()

    def _begin(self) -> None:
        for jobs in self._parties():
            due_s = max(job.not_before_s for job in jobs)
            if due_s <= self._clock() and self._has_room(jobs[0].work):
                for job in jobs:
                    del self._queue[job.work.key]
                handle = self._workers.submit([job.work for job in jobs])
                self._flying[handle] = _Flight(jobs, self._clock())

    def _parties(self) -> list[tuple[_Job, ...]]:
        """The jobs that wait, those together that are begun together."""
        found: dict[str, list[_Job]] = {}
        for key, job in self._queue.items():
            is_screening = isinstance(job.work, ScreenWork)
            name = f"screen {_place(job.work)}" if is_screening else key
            found.setdefault(name, []).append(job)
        return [tuple(jobs) for jobs in found.values()]

    def _has_room(self, work: Work) -> bool:
        place = _place(work)
        taken = sum(_place(flight.works[0]) == place for flight in self._flying.values())
        return taken < (self._config.fine_tune.max_parallel if place is None else 1)

    def _store(self, flight: _Flight, outcomes: Sequence[Outcome]) -> list[Settled]:
        """Store all outcomes of a flight, or none: together they take up where they were."""
        seconds = max(0.0, self._clock() - flight.began_s) / len(flight.jobs)
        finished_at = time.time()
        self._ledger.add_work(
            *(
                WorkRecord(work=work, outcome=outcome, finished_at=finished_at, seconds=seconds)
                for work, outcome in zip(flight.works, outcomes, strict=True)
            )
        )
        self.finished |= {work.key for work in flight.works}
        return [Settled(key=work.key) for work in flight.works]

    def _failed(self, flight: _Flight, failure: Failure) -> list[Settled]:
        for job in flight.jobs:
            job.failures[failure.kind] += 1
        most = max(job.failures[failure.kind] for job in flight.jobs)
        decision = decide(failure, most)
        self._report(f"{_name(flight.works[0])}: {decision.message}")
        if not decision.again:
            wrong = failure.kind == "user_error"
            return [
                Settled(key=work.key, error=failure.message, wrong_input=wrong)
                for work in flight.works
            ]
        not_before_s = self._clock() + decision.delay_s
        for job in flight.jobs:
            job.not_before_s = not_before_s
            self._queue[job.work.key] = job
        return []

    def _overdue(self) -> list[Settled]:
        late = {
            handle: flight
            for handle, flight in self._flying.items()
            if self._clock() - flight.began_s > self._deadline_s(flight)
        }
        self._cancel(late)
        settled = []
        for flight in late.values():
            limit_s = self._deadline_s(flight)
            message = f"{_name(flight.works[0])} did not answer within {limit_s:g} s"
            settled += self._failed(flight, Failure(kind="timed_out", message=message))
        return settled

    def _deadline_s(self, flight: _Flight) -> float:
        return sum(deadline_s(work, self._config) for work in flight.works)

    def _cancel(self, flights: Mapping[Hashable, _Flight]) -> None:
        if flights:
            self._workers.cancel(list(flights))
        for handle in flights:
            self._flying.pop(handle)


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
