"""The driver: for every target, state -> work -> dispatch -> step -> transition, to the end.

It wires the parts and decides nothing: ``machine`` says what follows, ``dispatch`` has the work
done, the ledger keeps it. Started again, it goes on from the ledger.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator import machine
from orchestrator.ahead import Foresight
from orchestrator.dispatch import Dispatcher, Settled, Workers
from orchestrator.interrupts import DRAIN_DEADLINE_S, Interrupts
from orchestrator.run_folder import EventFile, locked
from orchestrator.states import AnyState, Cancelled, Done, Failed, WorkingState
from orchestrator.store import config_guard
from orchestrator.store.base import Ledger, LedgerError, LedgerNotBegun, Standing
from orchestrator.store.reader import LEDGER, read_run, record_of
from orchestrator.store.sqlite import SqliteLedger
from orchestrator.transition import Clock, Transition
from schemas.config import RunConfig
from schemas.record import RunRecord
from schemas.work import Work

TICK_S = 1.0
"""Longest wait before signals and deadlines are looked at again."""
KEEP_TIME_S = 10.0
"""How much of the time worked a killed driver may forget."""
PACKAGES = ("cprune", "ray", "apache-tvm", "apache-tvm-ffi", "torch", "torchvision")

Opening = Callable[[RunConfig, Path], tuple[Ledger, Workers]]


Report = Callable[[str], None]


def print_line(text: str) -> None:
    """The report of a run that nobody else takes: one line for each transition."""
    print(text, flush=True)


def run(
    config: RunConfig,
    run_dir: str | Path,
    workers_factory: Opening | None = None,
    report: Report | None = None,
    interrupts: Interrupts | None = None,
    tick: Callable[[], None] | None = None,
) -> RunRecord:
    """Work on a run until every target has come to an end; start it or go on with it.

    ``workers_factory`` opens the ledger and the workers; without one they live in Ray. Both are
    closed in the end, whatever happens. ``report`` is handed one line for each transition, ``tick``
    is called every second or so.

    Raises:
        ConfigChanged: the folder was begun with another configuration.
        RunLocked: another process works on this run.
        LedgerError: the ledger cannot be written; what was recorded before is safe.
    """
    folder = Path(run_dir)
    told = report or print_line
    signals = interrupts or Interrupts(told)
    with locked(folder), signals:
        if has_ended(config, folder, told):
            return read_run(folder)
        ledger, workers = (workers_factory or _open_ray)(config, folder)
        with _closing(ledger, workers):
            return _Run(config, folder, ledger, workers, told, signals).go(tick)


@contextmanager
def _closing(ledger: Ledger, workers: Workers) -> Iterator[None]:
    """Close both in the end. What went wrong before is told, not what its closing led to."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            workers.close()
        with suppress(Exception):
            ledger.close()
        raise
    try:
        workers.close()
    finally:
        ledger.close()


class _Run:
    """One start of a run."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        ledger: Ledger,
        workers: Workers,
        report: Report,
        signals: Interrupts,
    ) -> None:
        anew = config_guard.admit(ledger, config, str(folder))
        if anew:
            report(anew)
        self._config = config
        self._ledger = ledger
        self._report = report
        self._signals = signals
        self._events = EventFile(folder, ledger.events())
        info = ledger.start(uuid.uuid4().hex, config, versions())
        self._began_s = time.monotonic() - info.wall_s
        self._standings: dict[str, Standing] = {}
        self._kept_s = info.wall_s
        self._told: set[str] = set()
        self._foresight = Foresight(config, ledger.outcomes)
        self._dispatcher = Dispatcher(workers, ledger, config, report)

    def go(self, tick: Callable[[], None] | None = None) -> RunRecord:
        """Everything, from reconciling to the record."""
        self._reconcile()
        self._tell_remarks()
        try:
            while not self._signals.count and self._active():
                self._advance()
                if not self._signals.count and self._active():
                    self._settle(self._dispatcher.poll(TICK_S))
                self._keep_time(KEEP_TIME_S)
                if tick is not None:
                    tick()
            if self._signals.count:
                self._drain()
                for state in self._active():
                    self._move(state, machine.cancel(state))
        except BaseException:
            with suppress(LedgerError):
                self._keep_time()
            raise
        self._keep_time()
        return record_of(self._ledger)

    def _reconcile(self) -> None:
        """Begin the targets that are new, and go on with those that stopped."""
        known = self._ledger.standings()
        names = [target.name for target in self._config.targets]
        self._standings = {name: known[name] for name in names if name in known}
        for name in names:
            if name not in known:
                first = machine.start(name)
                self._move(first, Transition(next_state=first, message="begins"))
                continue
            state = known[name].state
            while again := machine.resume(state, self._config, Clock(wall_s=self._wall_s())):
                state = self._move(state, again)

    def _active(self) -> list[WorkingState]:
        states = [standing.state for standing in self._standings.values()]
        return [state for state in states if not isinstance(state, Done | Failed | Cancelled)]

    def _missing(self, state: WorkingState) -> list[Work]:
        done = self._dispatcher.finished
        return [work for work in machine.work_of(state, self._config) if work.key not in done]

    def _advance(self) -> None:
        """Take every target as far as it gets without waiting; ask for the work it then needs, and
        for what can be done beside that."""
        wanted: list[Work] = []
        for state in self._active():
            following: AnyState = state
            while not isinstance(following, Done | Failed | Cancelled) and not self._signals.count:
                missing = self._missing(following)
                if missing:
                    wanted += [*missing, *self._ahead(following)]
                    break
                following = self._step(following)
        self._dispatcher.want_only(wanted)

    def _ahead(self, state: WorkingState) -> list[Work]:
        sequence = self._standings[state.target].sequence
        return self._foresight.works(state, sequence, Clock(wall_s=self._wall_s()))

    def _step(self, state: WorkingState) -> AnyState:
        outcomes = self._ledger.outcomes(machine.needs_of(state, self._config))
        clock = Clock(wall_s=self._wall_s())
        return self._move(state, machine.step(state, outcomes, self._config, clock))

    def _settle(self, settled: list[Settled]) -> None:
        """Fail the targets whose work was given up; cancel what only they wanted."""
        errors = {item.key: item for item in settled if item.error}
        self._foresight.give_up(errors)
        for state in self._active() if errors else []:
            keys = [work.key for work in machine.work_of(state, self._config)]
            told = [errors[key] for key in keys if key in errors]
            if told:
                first = told[0]
                failed = machine.fail(state, first.error, wrong_input=first.wrong_input)
                self._move(state, failed)
        if errors:
            active = self._active()
            self._dispatcher.abandon(
                work for state in active for work in [*self._missing(state), *self._ahead(state)]
            )

    def _drain(self) -> None:
        """Let the work in flight end, for a while; a second signal or the deadline cancels it."""
        self._dispatcher.drop()
        until = time.monotonic() + DRAIN_DEADLINE_S
        while self._dispatcher.busy and self._signals.count < 2 and time.monotonic() < until:
            self._dispatcher.poll(TICK_S)
            self._dispatcher.drop()
        if self._dispatcher.busy:
            if self._signals.count < 2:
                self._report(f"{DRAIN_DEADLINE_S / 60:g} minutes are over: cancelling what is left")
            self._dispatcher.cancel()

    def _move(self, state: AnyState, transition: Transition) -> AnyState:
        """The one place where a target's state changes."""
        target, following = state.target, transition.next_state
        standing = self._standings.get(target)
        expected = standing.sequence if standing else 0
        sequence = self._ledger.transition(
            target, expected, following, transition.message, time.time(), self._wall_s()
        )
        self._standings[target] = Standing(
            target=target, sequence=sequence, previous=expected, state=following
        )
        events = self._ledger.events(self._events.last)
        self._events.append(events)
        for event in events:
            kind = event.kind.replace("_", " ")
            self._report(f"{event.target}: {kind}: {event.message}")
        return following

    def _keep_time(self, every_s: float = 0.0) -> None:
        if self._wall_s() - self._kept_s >= every_s:
            self._kept_s = self._wall_s()
            self._ledger.keep_time(self._kept_s)
            self._tell_remarks()

    def _tell_remarks(self) -> None:
        """Report what the ledger has to say, each remark once."""
        for text in self._ledger.remarks():
            if text not in self._told:
                self._told.add(text)
                self._report(text)

    def _wall_s(self) -> float:
        return time.monotonic() - self._began_s


def versions() -> dict[str, str]:
    """The versions that decide what a run finds, read without importing anything."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def has_ended(config: RunConfig, folder: Path, report: Report = lambda text: None) -> bool:
    """Whether a start would find nothing left to do; refuses another configuration.

    Looked up before anything is started, so that both are known at once, and where nothing is left
    what would change that is reported. Raises as ``run``.
    """
    path = folder / LEDGER
    if not path.is_file():
        return False
    try:
        ledger = SqliteLedger(path, read_only=True)
    except LedgerNotBegun:
        return False
    try:
        config_guard.admit(ledger, config, str(folder))
        standings, events = ledger.standings(), ledger.events()
    finally:
        ledger.close()
    done = []
    for target in config.targets:
        state = standings[target.name].state if target.name in standings else None
        if not isinstance(state, Done) or machine.may_search_on(state, config):
            return False
        done.append(state)
    for state in done:
        report(machine.farewell(state, config))
    EventFile(folder, events)
    return True


def _open_ray(config: RunConfig, folder: Path) -> tuple[Ledger, Workers]:
    from orchestrator.ray_workers import open_ray

    return open_ray(config, folder)
