"""Parts of the search loop: the work its states ask for, and the ways back and out."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policies.screen import Rejection
from orchestrator.states import (
    Contender,
    Decision,
    FineTuning,
    FinishTraining,
    Judging,
    Proposing,
    Retuning,
    Screening,
    Search,
    Tuning,
)
from orchestrator.transition import Clock, Transition
from orchestrator.wording import count
from schemas.config import BudgetConfig, RunConfig
from schemas.work import Candidate, CompareWork, FineTuneWork, ScreenWork, TuneWork


def dense_tuning(state: Tuning, config: RunConfig) -> TuneWork:
    """The first search for programs."""
    return TuneWork(
        target=state.target,
        network=state.search.dense,
        trials_per_task=config.tune.trials_per_task,
    )


def screening(state: Screening | FineTuning | Judging, candidate: Candidate) -> ScreenWork:
    """The transplant of one candidate."""
    costs_ms = {task.task_id: task.call_ms for task in state.ranking}
    return ScreenWork(target=state.target, candidate=candidate, costs_ms=costs_ms)


def fine_tuning(candidate: Candidate, config: RunConfig) -> FineTuneWork:
    """The short training of one candidate; the same for every target that asks for it."""
    return FineTuneWork(
        parent=candidate.parent,
        structure=candidate.structure,
        epochs=config.fine_tune.short_epochs,
        learning_rate=config.fine_tune.short_learning_rate,
    )


def comparison(state: Judging, contender: Contender) -> CompareWork:
    """The paired measurement of one contender against its parent."""
    return CompareWork(
        target=state.target,
        reference=state.search.current,
        candidate=contender.network,
        label=f"round {state.search.round}",
    )


def retuning(state: Retuning, config: RunConfig) -> TuneWork:
    """A few more trials for the tasks that an accepted step changed."""
    return TuneWork(
        target=state.target,
        network=state.search.current,
        trials_per_task=config.tune.retune_trials_per_task,
        added_trials=True,
        modules=state.modules,
    )


def searched_s(found: Search, clock: Clock) -> float:
    """How long the search has been going on."""
    return clock.wall_s - (found.began_s or 0.0)


def spent_budget(found: Search, seconds: float, budget: BudgetConfig) -> str:
    """The budget that ends a search of so many seconds, by its field; empty while all last."""
    if found.round >= budget.max_rounds:
        return f"budget.max_rounds: {count(budget.max_rounds, 'round')} done"
    hours = seconds / 3600.0
    if hours >= budget.max_hours:
        return f"budget.max_hours: {hours:.2f} of {budget.max_hours:g} hours"
    return ""


def stop(state: Proposing, why: str, clock: Clock) -> Transition:
    """End the search well."""
    found = state.search.model_copy(
        update={"stopped_by": why, "searched_s": searched_s(state.search, clock)}
    )
    return Transition(
        next_state=FinishTraining(target=state.target, search=found),
        message=f"the search ends after {count(found.accepted, 'accepted step')}: {why}",
    )


def back(
    state: Screening | FineTuning | Judging,
    found: Search,
    decided: Sequence[Candidate],
    waiting: Sequence[Candidate],
    why: str,
) -> Transition:
    """Propose again, the tasks of the rejected candidates set aside unless one of them waits."""
    open_tasks = {candidate.task_id for candidate in waiting}
    closed = dict.fromkeys(
        candidate.task_id for candidate in decided if candidate.task_id not in open_tasks
    )
    aside = tuple(dict.fromkeys((*found.set_aside, *closed)))
    following = Proposing(
        target=state.target,
        search=found.model_copy(update={"set_aside": aside}),
        ranking=state.ranking,
    )
    return Transition(next_state=following, message=f"{why}; {count(len(aside), 'task')} set aside")


def rejected(
    state: Screening | FineTuning | Judging,
    rejection: Rejection,
    fine_tune_key: str | None = None,
) -> Decision:
    """A candidate that was not accepted."""
    return Decision(
        round=state.search.round,
        candidate_id=rejection.candidate.candidate_id,
        task_id=rejection.candidate.task_id,
        screen_key=screening(state, rejection.candidate).key,
        fine_tune_key=fine_tune_key,
        accepted=False,
        reason=rejection.reason,
    )


def with_decisions(found: Search, decisions: Sequence[Decision]) -> Search:
    """The search with these decisions added."""
    return found.model_copy(update={"decisions": (*found.decisions, *decisions)})


def cut(candidate: Candidate) -> str:
    """The change of widths, for people."""
    before, after = candidate.widths_before, candidate.widths_after
    return ", ".join(f"{old}->{new}" for old, new in zip(before, after, strict=True))
