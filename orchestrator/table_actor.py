"""The table actor: the process that owns the ledger, and what others hold of it.

The driver holds a ``LedgerClient``, workers a ``TableClient``, which reaches nothing but programs
and what is learned from them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray

from orchestrator.states import AnyState
from orchestrator.store.base import Event, Ledger, LedgerError, RunInfo, Standing
from orchestrator.store.sharing import Sharing, SharingLedger
from orchestrator.transition import IllegalTransition
from schemas.config import RunConfig
from schemas.record import WorkRecord
from schemas.table import KnownTask, Program, Sample
from schemas.work import Outcome

ANSWER_TIMEOUT_S = 120.0
"""Longest wait for the table; it may wait a minute for the file's lock itself."""

Answer = TypeVar("Answer")


class TableActor:
    """Holds the ledger of one run; every call is one call of the ledger."""

    def __init__(self, path: str, sharing: Sharing | None) -> None:
        self._path = Path(path)
        self._sharing = sharing
        self._ledger: SharingLedger | None = None

    def call(self, method: str, *values: object) -> object:
        """Call a method of the ledger."""
        # Opened here: of an error in its constructor an actor's callers learn the text alone.
        if self._ledger is None:
            self._ledger = SharingLedger(self._path, self._sharing)
        return getattr(self._ledger, method)(*values)


def this_node() -> dict[str, str]:
    """The label selector of the machine that asks, for what has to stay there."""
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def start_table(path: Path, sharing: Sharing | None = None) -> Any:
    """Start the actor on this node, where the files are. It comes back when its process is lost."""
    actor: Any = ray.remote(TableActor)
    return actor.options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        label_selector=this_node(),
    ).remote(str(path.absolute()), sharing)


class RayDied(LedgerError):
    """Ray, and with it the table's process, is gone."""


@contextmanager
def ray_expected(what: str) -> Iterator[None]:
    """Take an error of Ray itself for its end: a process of ours that dies comes back."""
    try:
        yield
    except (ray.exceptions.RayTaskError, ray.exceptions.GetTimeoutError):
        raise
    except ray.exceptions.RayError as error:
        raise RayDied(
            f"Ray has died, or the node of it that holds the run's record ({what} got no "
            "answer): give the same command again to go on, what was recorded is safe"
        ) from error


class _Client:
    """Calls the actor, with a deadline."""

    def __init__(self, actor: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._actor = actor
        self._timeout_s = timeout_s

    def _call(self, method: str, *values: object) -> Any:
        try:
            with ray_expected(method):
                return ray.get(self._actor.call.remote(method, *values), timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise LedgerError(
                f"the table did not answer {method} within {self._timeout_s:g} s: "
                "run the same command again to go on"
            ) from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LedgerError | IllegalTransition):
                raise error.cause from None
            raise


class TableClient(_Client):
    """A worker's view of the table: programs, and what is learned from them.

    May be sent to other processes.
    """

    def programs(self, task_ids: list[str], device_model: str) -> list[Program]:
        """The programs of these tasks on one device model."""
        found: list[Program] = self._call("programs", task_ids, device_model)
        return found

    def add_programs(self, programs: Sequence[Program]) -> None:
        """Store programs."""
        self._call("add_programs", list(programs))

    def record_check(self, program: Program) -> None:
        """Replace a stored program by itself with its outputs checked."""
        self._call("record_check", program)

    def samples(self, device_model: str, target: str) -> list[Sample]:
        """What the cost model begins with."""
        found: list[Sample] = self._call("samples", device_model, target)
        return found

    def share_samples(self, samples: Sequence[Sample]) -> None:
        """Give samples to other runs."""
        self._call("share_samples", list(samples))

    def known_tasks(
        self, device_model: str, target: str, without: Sequence[str]
    ) -> list[KnownTask]:
        """What other runs know of other tasks."""
        found: list[KnownTask] = self._call("known_tasks", device_model, target, list(without))
        return found

    def share_tasks(self, device_model: str, target: str, tasks: Sequence[KnownTask]) -> None:
        """Let other runs know what tasks take."""
        self._call("share_tasks", device_model, target, list(tasks))


class LedgerClient(TableClient, Ledger):
    """The driver's view: the whole ledger."""

    def for_workers(self) -> TableClient:
        """What workers are given."""
        return TableClient(self._actor, self._timeout_s)

    def start(self, start_id: str, config: RunConfig, versions: dict[str, str]) -> RunInfo:
        return _as(RunInfo, self._call("start", start_id, config, versions))

    def info(self) -> RunInfo | None:
        found = self._call("info")
        return None if found is None else _as(RunInfo, found)

    def keep_time(self, wall_s: float) -> None:
        self._call("keep_time", wall_s)

    def transition(
        self, target: str, expected: int, state: AnyState, message: str, at: float, wall_s: float
    ) -> int:
        values = (target, expected, state, message, at, wall_s)
        return _as(int, self._call("transition", *values))

    def standings(self) -> dict[str, Standing]:
        found: dict[str, Standing] = self._call("standings")
        return found

    def events(self, after: int = 0) -> list[Event]:
        found: list[Event] = self._call("events", after)
        return found

    def add_work(self, *records: WorkRecord) -> int:
        return _as(int, self._call("add_work", *records))

    def finished_keys(self) -> set[str]:
        return _as(set, self._call("finished_keys"))

    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        found: dict[str, Outcome] = self._call("outcomes", list(keys))
        return found

    def all_work(self) -> list[WorkRecord]:
        found: list[WorkRecord] = self._call("all_work")
        return found

    def condemned(self) -> list[Program]:
        found: list[Program] = self._call("condemned")
        return found

    def keep_samples(self, device_model: str, target: str, samples: Sequence[Sample]) -> None:
        self._call("keep_samples", device_model, target, list(samples))

    def remarks(self) -> list[str]:
        return _as(list, self._call("remarks"))

    def close(self) -> None:
        """Close the file in the actor's process and end it. Closing again does nothing."""
        if self._actor is None:
            return
        try:
            self._call("close")
            ray.kill(self._actor)
        finally:
            self._actor = None


def _as(kind: type[Answer], value: object) -> Answer:
    if not isinstance(value, kind):
        raise LedgerError(f"the table answered {type(value).__name__}, not {kind.__name__}")
    return value
