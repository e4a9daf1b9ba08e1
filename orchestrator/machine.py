"""The state machine of one target: which work a state needs, and what follows from its outcomes.

Everything here is pure. ``work_of`` and ``needs_of`` name what a state waits for, ``step`` turns
the outcomes into the next state. The driver performs the work and stores the transition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator import finish, search, spending, verdicts
from orchestrator import search_parts as parts
from orchestrator.policies.gates import floor_of
from orchestrator.states import (
    TRANSITIONS,
    AnyState,
    Cancelled,
    Choosing,
    Done,
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
    Search,
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
    FineTuning: verdicts.fine_tuned,
    Judging: verdicts.judged,
    Retuning: search.retuned,
    FinishTraining: finish.trained,
    FinishTuning: finish.tuned,
    Choosing: finish.chosen,
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
            return tuple(parts.screening(state, item, config) for item in state.candidates)
        case FineTuning():
            dense = state.search.dense
            return tuple(parts.fine_tuning(item, dense, config) for item in state.chosen)
        case Judging():
            return tuple(parts.comparison(state, contender) for contender in state.contenders)
        case Retuning():
            return (parts.retuning(state, config),)
        case FinishTraining():
            return finish.training(state, config)
        case FinishTuning():
            return (finish.tuning(state, config),)
        case Choosing():
            return (finish.choice(state),)
        case Exporting():
            return (finish.export(state, config),)
        case _:
            return ()


def needs_of(state: AnyState, config: RunConfig) -> tuple[str, ...]:
    """Keys of all outcomes that ``step`` reads: those of its own work and of earlier work."""
    own = tuple(work.key for work in work_of(state, config))
    match state:
        case Ranking():
            return (*own, state.search.tuned_key)
        case Proposing():
            learnt = (
                *parts.first_tuning(state.search, config),
                *parts.screenings_so_far(state.search, config),
            )
            known = state.search
            lost = parts.lost_keys(known)
            return (*own, known.prepare_key, known.trained_key, known.tuned_key, *learnt, *lost)
        case FinishTuning():
            return (*own, finish.final_tuning(state, config).key)
        case Judging():
            earlier = (
                parts.screening(state, item.candidate, config).key for item in state.contenders
            )
            return (*own, state.search.tuned_key, *earlier)
        case _:
            return own


def start(target: str) -> Preparing:
    """The state in which a target's search begins."""
    return Preparing(target=target)


def fail(state: WorkingState, error: str, *, wrong_input: bool = False) -> Transition:
    """The work of a state failed for good in this start of the run."""
    failed = Failed(target=state.target, error=error, wrong_input=wrong_input, resume=state)
    return checked(state, Transition(next_state=failed, message=error))


def cancel(state: WorkingState) -> Transition:
    """The user stopped the run."""
    cancelled = Cancelled(target=state.target, resume=state)
    message = f"stopped by the user while {_words(state)}; the same command goes on from here"
    return checked(state, Transition(next_state=cancelled, message=message))


def resume(state: AnyState, config: RunConfig, clock: Clock) -> Transition | None:
    """What follows when the run is started again; None when the state stays as it is.

    A stopped target goes on, a finished one where there is more of the budget that ended it. One
    whose floor has been changed, which may be until a candidate is decided, prepares again.
    """
    match state:
        case Done() if may_search_on(state, config):
            return _search_on(state, clock)
        case Done():
            return None
        case Failed() | Cancelled():
            again = start(state.target) if _floor_changed(state.resume, config) else state.resume
            message = f"goes on with {_words(again)}"
            return checked(state, Transition(next_state=again, message=message))
        case _ if _floor_changed(state, config):
            stopped = Cancelled(target=state.target, resume=start(state.target))
            return checked(state, Transition(next_state=stopped, message="the floor is another"))
        case _:
            return None


def may_search_on(state: Done, config: RunConfig) -> bool:
    """Whether a budget ended the search, and there is more of it now."""
    found = state.search
    return found.stopped_by.startswith("budget.") and not spending.spent_budget(
        found, found.searched_s, config.budget
    )


def farewell(state: Done, config: RunConfig) -> str:
    """Why a finished target does not go on, and what would make it."""
    found = state.search
    spent = spending.spent_budget(found, found.searched_s, config.budget)
    if not found.stopped_by.startswith("budget.") or not spent:
        return f"{state.target} is done ({found.stopped_by}): nothing is left to do"
    field = spent.partition(":")[0]
    return (
        f"{state.target} is done ({spent}): raise {field} and give the same command again to go on"
    )


def _search_on(state: Done, clock: Clock) -> Transition:
    found = state.search.model_copy(
        update={"stopped_by": "", "began_s": clock.wall_s - state.search.searched_s}
    )
    following = Ranking(target=state.target, search=found)
    message = f"the search goes on, {state.search.stopped_by.partition(':')[0]} has been raised"
    return checked(state, Transition(next_state=following, message=message))


def _floor_changed(state: AnyState, config: RunConfig) -> bool:
    found = getattr(state, "search", None)
    return (
        isinstance(found, Search)
        and not found.decisions
        and found.floor != floor_of(found.dense.val_accuracy, config.prune)
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
