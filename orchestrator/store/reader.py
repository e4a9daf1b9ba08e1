"""A run's record, read from its folder without Ray and without writing."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from orchestrator.states import AnyState, Cancelled, Decision, Failed, Search
from orchestrator.store.base import Event, Ledger, LedgerNotBegun
from orchestrator.store.sqlite import SqliteLedger
from schemas.network import ChannelGroup
from schemas.record import (
    EventRecord,
    RunRecord,
    RunState,
    StepRecord,
    TargetRecord,
    WorkRecord,
)
from schemas.work import (
    Candidate,
    Compared,
    FineTuned,
    FineTuneWork,
    Prepared,
    Screened,
    ScreenWork,
)

LEDGER = "ledger.sqlite"


class NoRun(FileNotFoundError):
    """The folder holds no run."""


class Unreadable(NoRun):
    """The folder holds a run that another version wrote, or that is damaged."""


class NotBegun(Exception):
    """The run has never been started."""


def read_run(run_dir: str | Path) -> RunRecord:
    """The run in a folder, as its ledger tells it."""
    path = Path(run_dir) / LEDGER
    if not path.is_file():
        raise NoRun(f"{run_dir} holds no run: there is no {LEDGER} in it")
    try:
        ledger = SqliteLedger(path, read_only=True)
    except LedgerNotBegun as error:
        raise NoRun(f"{run_dir} holds a run that has not begun: {error}") from error
    try:
        return record_of(ledger)
    except NotBegun as error:
        raise NoRun(f"{run_dir} holds a run that has not begun: {error}") from error
    except LookupError as error:
        raise Unreadable(
            f"{run_dir} holds a run that cannot be read, written by another version of cprune or "
            f"damaged: nothing is known of {error}; read it with the version that wrote it, and "
            "give another run another name"
        ) from error
    finally:
        ledger.close()


def record_of(ledger: Ledger) -> RunRecord:
    """The record of a started run; ``NotBegun`` before its first start, LookupError where parts of
    it refer to others that are not there."""
    info = ledger.info()
    if info is None:
        raise NotBegun("it has never been started")
    standings = ledger.standings()
    names = [target.name for target in info.config.targets]
    states = {name: standings[name].state for name in names if name in standings}
    work = ledger.all_work()
    events = ledger.events()
    by_key = {item.work.key: item for item in work}
    return RunRecord(
        config=info.config,
        state=run_state([states.get(name) for name in names]),
        error=error_of(states),
        wrong_input=wrong_input_of(states),
        started=info.started,
        wall_s=info.wall_s,
        phases_s=phases(events, info.wall_s),
        versions=info.versions,
        targets=tuple(target_record(states[name], by_key) for name in names if name in states),
        work=tuple(work),
        condemned=tuple(ledger.condemned()),
        events=tuple(
            EventRecord(
                sequence=event.sequence,
                at=event.at,
                target=event.target,
                state=event.kind,
                message=event.message,
            )
            for event in events
        ),
    )


def run_state(states: list[AnyState | None]) -> RunState:
    """The run's state: it is running until every target has come to an end."""
    if any(state is None or not state.is_terminal for state in states):
        return "running"
    if any(isinstance(state, Failed) for state in states):
        return "failed"
    return "cancelled" if any(isinstance(state, Cancelled) for state in states) else "done"


def error_of(states: dict[str, AnyState]) -> str:
    """Why targets failed, in one text; the target is named where there are several."""
    errors = {name: state.error for name, state in states.items() if isinstance(state, Failed)}
    if len(set(errors.values())) == 1:
        return next(iter(errors.values()))
    return "; ".join(f"{name}: {error}" for name, error in errors.items())


def wrong_input_of(states: dict[str, AnyState]) -> bool:
    """Whether every target that failed did so by what the user gave."""
    failed = [state for state in states.values() if isinstance(state, Failed)]
    return bool(failed) and all(state.wrong_input for state in failed)


def phases(events: list[Event], wall_s: float) -> dict[str, float]:
    """State -> wall-clock seconds all targets spent in it, without the time between starts."""
    spent: dict[str, float] = defaultdict(float)
    last: dict[str, Event] = {}
    for event in events:
        before = last.get(event.target)
        if before:
            spent[before.kind] += max(0.0, event.wall_s - before.wall_s)
        last[event.target] = event
    for event in last.values():
        spent[event.kind] += max(0.0, wall_s - event.wall_s)
    ended = ("done", "failed", "cancelled")  # while another target may have gone on
    return {kind: seconds for kind, seconds in spent.items() if kind not in ended}


def target_record(state: AnyState, work: dict[str, WorkRecord]) -> TargetRecord:
    """Where a target stands."""
    found = search_of(state)
    inner = state.resume if isinstance(state, Failed | Cancelled) else state
    return TargetRecord(
        target=state.target,
        state=state.kind,
        accuracy_floor=found.floor if found else None,
        current=found.current if found else None,
        final=getattr(inner, "final", None),
        steps=tuple(_step(decision, work) for decision in found.decisions) if found else (),
        stopped_by=found.stopped_by if found else "",
        searched_s=found.searched_s if found else 0.0,
    )


def search_of(state: AnyState) -> Search | None:
    """What a state knows of the search; None before it began."""
    inner = state.resume if isinstance(state, Failed | Cancelled) else state
    found = getattr(inner, "search", None)
    return found if isinstance(found, Search) else None


def _step(decision: Decision, work: dict[str, WorkRecord]) -> StepRecord:
    screen = work[decision.screen_key].outcome if decision.screen_key else None
    trained = work[decision.fine_tune_key].outcome if decision.fine_tune_key else None
    compared = work[decision.compare_key].outcome if decision.compare_key else None
    measured = screen if isinstance(screen, Screened) and screen.tuned is not None else None
    return StepRecord(
        round=decision.round,
        candidate=_candidate(decision, work),
        parent_ms=measured.parent_ms if measured else None,
        screened_ms=measured.candidate_ms if measured else None,
        val_accuracy=trained.network.val_accuracy if isinstance(trained, FineTuned) else None,
        comparison=compared.comparison if isinstance(compared, Compared) else None,
        accepted=decision.accepted,
        reason=decision.reason,
    )


def _candidate(decision: Decision, work: dict[str, WorkRecord]) -> Candidate:
    """The candidate that was decided upon, as its screening or its training knew it."""
    if decision.screen_key:
        screening = work[decision.screen_key].work
        assert isinstance(screening, ScreenWork)
        return screening.candidate
    assert decision.fine_tune_key
    training = work[decision.fine_tune_key].work
    assert isinstance(training, FineTuneWork)
    before, after = training.parent.structure.widths, training.structure.widths
    dense = {item.group_id: item.channels for item in _groups(work)}
    return Candidate(
        candidate_id=decision.candidate_id,
        task_id=decision.task_id,
        task_name=decision.task_name,
        parent=training.parent,
        structure=training.structure,
        groups=decision.groups,
        widths_before=tuple(before.get(name, dense[name]) for name in decision.groups),
        widths_after=tuple(after.get(name, dense[name]) for name in decision.groups),
    )


def _groups(work: dict[str, WorkRecord]) -> tuple[ChannelGroup, ...]:
    found = (item.outcome for item in work.values() if isinstance(item.outcome, Prepared))
    return next((outcome.groups for outcome in found), ())
