"""Parts of the search loop: the work its states ask for, and the ways back and out."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policies.names import POLICIES
from orchestrator.policies.screen import Rejection
from orchestrator.spending import searched_s
from orchestrator.states import (
    Contender,
    Decision,
    FineTuning,
    FinishTraining,
    Judging,
    Proposing,
    Ranking,
    Retuning,
    Screening,
    Search,
    Tuning,
)
from orchestrator.transition import Clock, Transition
from orchestrator.wording import count
from schemas.config import RunConfig
from schemas.network import Structure, Trained
from schemas.work import (
    Candidate,
    CompareWork,
    FineTuneWork,
    ScreenWork,
    TuneWork,
)


def dense_tuning(state: Tuning, config: RunConfig) -> TuneWork:
    """The first search for programs."""
    return TuneWork(
        target=state.target,
        network=state.search.dense,
        trials_per_task=config.tune.trials_per_task,
    )


def screening(
    state: Screening | FineTuning | Judging, candidate: Candidate, config: RunConfig
) -> ScreenWork:
    """How one candidate's programs are found: transplanted, or searched where the policy says so
    or transplants are left out."""
    by = POLICIES[config.prune.policy].screening
    if by is None:
        raise ValueError(f"the policy {config.prune.policy} screens no candidate")
    if by == "transplant" and "transplants" in config.prune.without:
        by = "search"
    return ScreenWork(
        target=state.target,
        candidate=candidate,
        by=by,
        trials_per_task=0 if by == "transplant" else config.tune.trials_per_task,
        costs_ms={task.task_id: task.call_ms for task in state.ranking},
    )


def screenings_so_far(found: Search, config: RunConfig) -> tuple[str, ...]:
    """Keys of the screenings that the policy learns from; none for one that does not."""
    if not POLICIES[config.prune.policy].learns:
        return ()
    keys = (decision.screen_key for decision in found.decisions)
    return tuple(dict.fromkeys(key for key in keys if key is not None))


def first_tuning(found: Search, config: RunConfig) -> tuple[str, ...]:
    """Key of the dense network's tuning, which tells what earlier runs know; none for a policy that
    does not learn."""
    key = found.dense_tuned_key
    return (key,) if key is not None and POLICIES[config.prune.policy].learns else ()


def lost_keys(found: Search) -> tuple[str, ...]:
    """Keys of the trainings of cuts that lost too much accuracy, which may go on."""
    return tuple(item.fine_tune_key for item in found.lost_cuts if item.fine_tune_key is not None)


def fine_tuning(candidate: Candidate, dense: Trained, config: RunConfig) -> FineTuneWork:
    """The training of one candidate; the same for every target that asks for it."""
    start = candidate.trained_from or candidate.parent
    if candidate.long_training:
        return long_training(start, candidate.structure, dense, config, candidate.trained_further)
    return FineTuneWork(
        parent=start,
        structure=candidate.structure,
        epochs=config.fine_tune.short_epochs,
        learning_rate=config.fine_tune.short_learning_rate,
        teacher=_teacher(dense, config),
    )


def long_training(
    start: Trained, structure: Structure, dense: Trained, config: RunConfig, further: int = 0
) -> FineTuneWork:
    """A training as long as the final network's; more gently where one has gone before.

    Each time that it goes on, by ``further``, with half of the learning rate.
    """
    recipe = config.fine_tune
    goes_on = start.structure == structure and start.epochs >= recipe.long_epochs
    return FineTuneWork(
        parent=start,
        structure=structure,
        epochs=recipe.long_epochs,
        learning_rate=recipe.further_learning_rate / 2 ** max(0, further - 1)
        if goes_on
        else recipe.long_learning_rate,
        most_pruned_at_once=recipe.most_pruned_at_once,
        teacher=_teacher(dense, config),
    )


def _teacher(dense: Trained, config: RunConfig) -> Trained | None:
    return dense if config.fine_tune.distillation else None


def comparison(state: Judging, contender: Contender) -> CompareWork:
    """The paired measurement of one contender against its parent."""
    return CompareWork(
        target=state.target,
        reference=state.search.current,
        candidate=contender.network,
        label=f"round {state.search.round}",
    )


def retuning(state: Retuning, config: RunConfig) -> TuneWork:
    """A few more trials for the tasks that an accepted step changed, and all programs timed inside
    the network.

    That alone where the tasks were searched already, instead of transplanted, and where none
    changed, as when blocks are taken out.
    """
    by = POLICIES[config.prune.policy].screening
    is_searched = by == "search" or "transplants" in config.prune.without
    return TuneWork(
        target=state.target,
        network=state.search.current,
        trials_per_task=0 if is_searched else config.tune.retune_trials_per_task,
        added_trials=True,
        modules=state.modules,
    )


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
        candidate.task_id
        for candidate in decided
        if candidate.task_id and candidate.task_id not in open_tasks
    )
    aside = tuple(dict.fromkeys((*found.set_aside, *closed)))
    following = Proposing(
        target=state.target,
        search=found.model_copy(update={"set_aside": aside}),
        ranking=state.ranking,
    )
    return Transition(next_state=following, message=f"{why}; {count(len(aside), 'task')} set aside")


def decision_of(
    state: Screening | FineTuning | Judging,
    candidate: Candidate,
    config: RunConfig,
    *,
    accepted: bool,
    reason: str,
    trained: Trained | None = None,
    compare_key: str | None = None,
    not_faster: bool = False,
    slower: tuple[str, ...] = (),
) -> Decision:
    """What was decided about a candidate, with the keys of the work that was done for it."""
    screens = POLICIES[config.prune.policy].screening is not None
    return Decision(
        round=state.search.round,
        candidate_id=candidate.candidate_id,
        task_id=candidate.task_id,
        task_name=candidate.task_name,
        groups=candidate.groups,
        structure=candidate.structure,
        screen_key=screening(state, candidate, config).key if screens else None,
        fine_tune_key=fine_tuning(candidate, state.search.dense, config).key if trained else None,
        compare_key=compare_key,
        val_accuracy=trained.val_accuracy if trained else None,
        trained_further=candidate.trained_further,
        long_training=candidate.long_training,
        accepted=accepted,
        not_faster=not_faster,
        slower=slower,
        kept_share=candidate.kept_share,
        reason=reason,
    )


def rejected(
    state: Screening | FineTuning | Judging,
    rejection: Rejection,
    config: RunConfig,
    *,
    trained: Trained | None = None,
    not_faster: bool = False,
    slower: tuple[str, ...] = (),
) -> Decision:
    """A candidate that was not accepted."""
    return decision_of(
        state,
        rejection.candidate,
        config,
        accepted=False,
        reason=rejection.reason,
        trained=trained,
        not_faster=not_faster,
        slower=slower,
    )


def less_accurate(contender: Contender, compared: Sequence[Contender]) -> str:
    """Why a candidate that kept its accuracy is not compared."""
    best = max(item.network.val_accuracy for item in compared)
    return (
        f"validation accuracy {contender.network.val_accuracy:.4f}, another of its round has "
        f"{best:.4f}"
    )


def taken_unmeasured(
    state: FineTuning, found: Search, contender: Contender, config: RunConfig
) -> Transition:
    """Accept a candidate whose latency its policy does not ask for."""
    reason = f"accepted: validation accuracy {contender.network.val_accuracy:.4f}"
    decision = decision_of(
        state,
        contender.candidate,
        config,
        accepted=True,
        reason=reason,
        trained=contender.network,
    )
    narrower = contender.candidate.structure != found.current.structure
    update = {
        "current": contender.network,
        "wider": found.current if narrower and found.accepted else found.wider,
        "trained_key": decision.fine_tune_key,
        "accepted": found.accepted + 1,
    }
    following = Ranking(
        target=state.target, search=with_decisions(found, [decision]).model_copy(update=update)
    )
    return Transition(next_state=following, message=f"{contender.candidate.task_name}: {reason}")


def with_decisions(found: Search, decisions: Sequence[Decision]) -> Search:
    """The search with these decisions added."""
    return found.model_copy(update={"decisions": (*found.decisions, *decisions)})


def cut(candidate: Candidate) -> str:
    """The change of widths, for people."""
    before, after = candidate.widths_before, candidate.widths_after
    return ", ".join(f"{old}->{new or 'none'}" for old, new in zip(before, after, strict=True))
