"""The ledger's contract.

* There is one writer. Readers open the file themselves, read-only.
* A method that returns has made its change durable; one that raises has changed nothing.
* Events are only ever appended. A target's current state is that of its last event, changed in the
  same transaction by compare-and-set on the event's sequence number.
* Work and programs are immutable: storing one a second time changes nothing.
* Every write may be repeated, as happens when an answer was lost on its way.
* What is returned is a copy that later writes do not change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from orchestrator.states import ALLOWED, AnyState, Preparing, kind_of
from orchestrator.transition import IllegalTransition
from schemas.base import Schema
from schemas.config import RunConfig
from schemas.record import WorkRecord
from schemas.table import KnownTask, Program, Sample
from schemas.work import Outcome


class LedgerError(RuntimeError):
    """The ledger cannot be read or written."""


class LedgerFull(LedgerError):
    """There is no room for another record. What was recorded before is safe."""


class LedgerDamaged(LedgerError):
    """What the file holds cannot be understood."""


class LedgerNotBegun(LedgerError):
    """The file holds nothing yet: whoever made it ended before the first commit."""


class StaleSequence(LedgerError):
    """The target has moved on since the caller looked."""


class RunInfo(Schema):
    """What is known of the run as a whole."""

    config: RunConfig
    versions: dict[str, str]
    started: int
    wall_s: float


class Standing(Schema):
    """A target's current state, and the numbers of the events that led to it."""

    target: str
    sequence: int
    previous: int
    state: AnyState


class Event(Schema):
    """One transition."""

    sequence: int
    at: float
    wall_s: float
    target: str
    kind: str
    message: str


class Ledger(ABC):
    """A run's record. See the module's text for what holds for every method."""

    @abstractmethod
    def start(self, start_id: str, config: RunConfig, versions: dict[str, str]) -> RunInfo:
        """Note that the run was started, once for each ``start_id``; keep the configuration."""

    @abstractmethod
    def info(self) -> RunInfo | None:
        """The run, or None before its first start."""

    @abstractmethod
    def keep_time(self, wall_s: float) -> None:
        """Note the seconds worked on the run so far; a smaller figure than before is ignored."""

    @abstractmethod
    def transition(
        self, target: str, expected: int, state: AnyState, message: str, at: float, wall_s: float
    ) -> int:
        """Append an event and make ``state`` the target's; the event's sequence number.

        ``expected`` is the sequence number of the target's last event, 0 when it has none.

        Raises:
            StaleSequence: when that is another one, unless this very transition made it so.
            IllegalTransition: when the transition is not declared.
        """

    @abstractmethod
    def standings(self) -> dict[str, Standing]:
        """Target -> where it stands."""

    @abstractmethod
    def events(self, after: int = 0) -> list[Event]:
        """The events with a greater sequence number, in order."""

    @abstractmethod
    def add_work(self, *records: WorkRecord) -> int:
        """Store finished work under its keys, all of it or none; what is there already stays.

        Returns how many of the records were new.
        """

    @abstractmethod
    def finished_keys(self) -> set[str]:
        """Keys of all finished work."""

    @abstractmethod
    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """Key -> outcome, for those of the keys that are finished."""

    @abstractmethod
    def all_work(self) -> list[WorkRecord]:
        """All finished work, in the order in which it was stored."""

    @abstractmethod
    def programs(self, task_ids: list[str], device_model: str) -> list[Program]:
        """The programs of these tasks on one device model, in the order they were added."""

    @abstractmethod
    def add_programs(self, programs: Sequence[Program]) -> None:
        """Store programs, all or none; one that is there already stays as it is."""

    @abstractmethod
    def record_check(self, program: Program) -> None:
        """Replace a stored program by itself with its outputs checked."""

    @abstractmethod
    def condemned(self) -> list[Program]:
        """The programs, of whatever task and device, that computed something else."""

    @abstractmethod
    def samples(self, device_model: str, target: str) -> list[Sample]:
        """What the cost model for this target on this device model begins with."""

    @abstractmethod
    def keep_samples(self, device_model: str, target: str, samples: Sequence[Sample]) -> None:
        """Note what that cost model begins with, be it nothing; what was noted first stays."""

    def share_samples(self, samples: Sequence[Sample]) -> None:
        """Give samples to other runs, where the ledger knows any."""
        return None

    def known_tasks(
        self, device_model: str, target: str, without: Sequence[str]
    ) -> list[KnownTask]:
        """What other runs know of other tasks than those in ``without``; not the same each time."""
        return []

    def share_tasks(self, device_model: str, target: str, tasks: Sequence[KnownTask]) -> None:
        """Let other runs know what these tasks take, where the ledger knows any."""
        return None

    def remarks(self) -> list[str]:
        """What is to be told to whoever watches this start of the run, and stops nothing."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Close the ledger; closing it again does nothing."""


def repeats(
    current: Standing | None, target: str, expected: int, state: AnyState
) -> Standing | None:
    """The standing this transition already led to, if it is a repetition; checks it otherwise.

    Raises:
        StaleSequence: the target's last event is not ``expected``.
        IllegalTransition: the transition is not declared.
    """
    sequence = current.sequence if current else 0
    if sequence != expected:
        if current and current.previous == expected and current.state == state:
            return current
        raise StaleSequence(
            f"{target} is at event {sequence}, not at {expected}: another process works on this run"
        )
    if current is None:
        if not isinstance(state, Preparing):
            raise IllegalTransition(f"{target} begins with {kind_of(Preparing)}, not {state.kind}")
    elif (current.state.kind, state.kind) not in ALLOWED:
        raise IllegalTransition(
            f"{target}: {current.state.kind} may not be followed by {state.kind}"
        )
    return None
