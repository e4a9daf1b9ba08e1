"""The state machine of one target: which work a state needs, and what follows from its outcomes.

Everything here is pure. ``work_of`` and ``needs_of`` name what a state waits for, ``step`` turns
the outcomes into the next state. The driver performs the work and stores the transition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator import finish, search
from orchestrator import search_parts as parts
from orchestrator.states import (
    TRANSITIONS,
    AnyState,
    Cancelled,
    Exporting,
    Failed,
    FineTuning,
    FinishTraining,
    FinishTuning,
    Judging,
    Preparing,
    Proposing,
    Ranking,
    Retuning,
    Screening,
    Tuning,
    WorkingState,
)
from orchestrator.transition import Clock, IllegalTransition, Transition
from schemas.config import RunConfig
from schemas.work import Outcome, PrepareWork, UniformWork, Work

_STEPS: dict[type, Callable[[Any, Mapping[str, Outcome], RunConfig, Clock], Transition]] = {
    Preparing: search.prepared,
    Tuning: search.tuned,
    Ranking: search.ranked,
    Proposing: search.proposed,
    Screening: search.screened,
    FineTuning: search.fine_tuned,
    Judging: search.judged,
    Retuning: search.retuned,
    FinishTraining: finish.trained,
    FinishTuning: finish.tuned,
    Exporting: finish.exported,
}


def step(
    state: WorkingState, outcomes: Mapping[str, Outcome], config: RunConfig, clock: Clock
) -> Transition:
    """The transition that follows when all of the state's work is done.

    ``outcomes`` holds at least what ``needs_of`` names.
    """
    return checked(state, _STEPS[type(state)](state, outcomes, config, clock))


def work_of(state: AnyState, config: RunConfig) -> tuple[Work, ...]:
    """The work a state waits for; states that only think, and terminal ones, have none."""
    match state:
        case Preparing():
            fraction = config.compare_uniform
            uniform = () if fraction is None else (UniformWork(fraction=fraction),)
            return (PrepareWork(), *uniform)
        case Tuning():
            return (parts.dense_tuning(state, config),)
        case Screening():
            return tuple(parts.screening(state, candidate) for candidate in state.candidates)
        case FineTuning():
            return tuple(parts.fine_tuning(candidate, config) for candidate in state.chosen)
        case Judging():
            return tuple(parts.comparison(state, contender) for contender in state.contenders)
        case Retuning():
            return (parts.retuning(state, config),)
        case FinishTraining():
            return finish.training(state, config)
        case FinishTuning():
            return finish.tuning(state, config)
        case Exporting():
            return (finish.export(state, config),)
        case _:
            return ()


def needs_of(state: AnyState, config: RunConfig) -> tuple[str, ...]:
    """Keys of all outcomes that ``step`` reads: those of its own work and of earlier work."""
    own = tuple(work.key for work in work_of(state, config))
    match state:
        case Ranking() | Screening():
            return (*own, state.search.tuned_key)
        case Proposing():
            return (*own, state.search.prepare_key, state.search.tuned_key)
        case Judging():
            earlier = (parts.screening(state, item.candidate).key for item in state.contenders)
            return (*own, state.search.tuned_key, *earlier)
        case _:
            return own


def start(target: str) -> Preparing:
    """The state in which a target's search begins."""
    return Preparing(target=target)


def fail(state: WorkingState, error: str) -> Transition:
    """The work of a state failed for good in this start of the run."""
    failed = Failed(target=state.target, error=error, resume=state)
    return checked(state, Transition(next_state=failed, message=error))


def cancel(state: WorkingState) -> Transition:
    """The user stopped the run."""
    cancelled = Cancelled(target=state.target, resume=state)
    message = f"stopped by the user while {_words(state)}; the same command goes on from here"
    return checked(state, Transition(next_state=cancelled, message=message))


def resume(state: AnyState) -> Transition | None:
    """Where a stopped target goes on, when the run is started again; None when it does not."""
    if not isinstance(state, Failed | Cancelled) or state.resume is None:
        return None
    return checked(
        state, Transition(next_state=state.resume, message=f"goes on with {_words(state.resume)}")
    )


def checked(state: AnyState, transition: Transition) -> Transition:
    """The transition, if it is declared."""
    following = type(transition.next_state)
    if following not in TRANSITIONS[type(state)]:
        raise IllegalTransition(
            f"{state.target}: {state.kind} may not be followed by {transition.next_state.kind}"
        )
    return transition


def _words(state: AnyState) -> str:
    return state.kind.replace("_", " ")
