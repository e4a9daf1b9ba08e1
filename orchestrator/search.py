"""The steps of the search loop: from the dense network to the last accepted step."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.policies.base import View
from orchestrator.policies.candidates import rank_tasks
from orchestrator.policies.gates import floor_of
from orchestrator.policies.names import POLICIES
from orchestrator.reading import get, programs_of, sensitivities_of
from orchestrator.search_parts import (
    back,
    dense_tuning,
    first_tuning,
    lost_keys,
    rejected,
    retuning,
    screening,
    screenings_so_far,
    stop,
    with_decisions,
)
from orchestrator.spending import (
    reached_target,
    searched_s,
    spent_budget,
    with_programs,
    with_screenings,
)
from orchestrator.states import (
    AnyState,
    Failed,
    FineTuning,
    FinishTraining,
    Preparing,
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
from schemas.work import (
    FineTuned,
    Outcome,
    Prepared,
    PrepareWork,
    Screened,
    UniformTrained,
    UniformWork,
)

Outcomes = Mapping[str, Outcome]


def prepared(state: Preparing, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Set the floor; one above the dense network's accuracy cannot be met."""
    key = PrepareWork().key
    dense = get(outcomes, key, Prepared).dense
    floor = floor_of(dense.val_accuracy, config.prune)
    if floor > dense.val_accuracy:
        error = _too_high(floor, dense.val_accuracy)
        failed = Failed(target=state.target, error=error, wrong_input=True, resume=state)
        return Transition(next_state=failed, message=error)
    fraction = config.compare_uniform
    uniform = (
        None
        if fraction is None
        else get(outcomes, UniformWork(fraction=fraction).key, UniformTrained).network
    )
    found = Search(
        prepare_key=key,
        dense=dense,
        uniform=uniform,
        floor=floor,
        current=dense,
        trained_key=key,
        tuned_key="",
    )
    following = Tuning(target=state.target, search=found)
    message = f"validation accuracy {dense.val_accuracy:.4f}, floor {floor:.4f}"
    return Transition(next_state=following, message=message)


def _too_high(floor: float, val_accuracy: float) -> str:
    attainable = int(val_accuracy * 1000) / 1000
    lower = f"set it to {attainable:g} or less and give the same command again, or "
    return (
        f"prune.accuracy_floor is {floor:g}, above the dense network's validation accuracy of "
        f"{val_accuracy:.4f}: {lower if attainable else ''}train the dense network longer "
        "(train.epochs) under another name in run"
    )


def tuned(state: Tuning, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """The search begins: its budget of hours counts from here."""
    key = dense_tuning(state, config).key
    programs = programs_of(outcomes, key)
    update = {
        "tuned_key": key,
        "dense_tuned_key": key,
        "began_s": clock.wall_s,
        "current_ms": programs.model_ms or programs.sum_ms,
    }
    found = state.search.model_copy(update=update)
    message = (
        f"{programs.measured_programs} programs measured, {len(programs.latencies)} tasks, "
        f"{programs.sum_ms:.4g} ms in all"
    )
    if programs.earlier:
        message += f"; {count(len(programs.earlier), 'task')} known from earlier runs"
    return Transition(next_state=Ranking(target=state.target, search=found), message=message)


def ranked(state: Ranking, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Order the tasks by what they cost."""
    ranking = rank_tasks(programs_of(outcomes, state.search.tuned_key))
    following = Proposing(target=state.target, search=state.search, ranking=ranking)
    slowest = ", ".join(f"{task.name} {task.share:.0%}" for task in ranking[:3])
    return Transition(next_state=following, message=f"slowest: {slowest}")


def proposed(state: Proposing, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Make candidates, unless a budget is spent or none is left."""
    found = state.search
    ended = reached_target(found, config.prune) or spent_budget(
        found, searched_s(found, clock), config.budget
    )
    if ended:
        return stop(state, ended, clock)
    policy = POLICIES[config.prune.policy]
    view = View(
        search=found,
        ranking=state.ranking,
        programs=programs_of(outcomes, found.tuned_key),
        prepared=get(outcomes, found.prepare_key, Prepared),
        config=config.prune,
        screened=[
            screened.tuned
            for key in screenings_so_far(found, config)
            if (screened := get(outcomes, key, Screened)).tuned is not None
        ],
        earlier=[
            task
            for key in first_tuning(found, config)
            for task in programs_of(outcomes, key).earlier
        ],
        sensitivities=sensitivities_of(outcomes, found.trained_key),
        lost={key: get(outcomes, key, FineTuned).network for key in lost_keys(found)},
    )
    proposal = policy.propose(view)
    if proposal.recovery:
        recovery = FinishTraining(target=state.target, search=found, goes_on=True)
        message = "deeper cuts lose too much accuracy: the network is trained for long first"
        return Transition(next_state=recovery, message=message)
    if not proposal.candidates:
        why = "; ".join(proposal.passed_over) or "no task has a prunable group"
        return stop(state, f"no step is left that pays ({why})", clock)
    again = found.model_copy(update={"round": found.round + 1})
    following: AnyState = (
        FineTuning(
            target=state.target,
            search=again,
            ranking=state.ranking,
            chosen=proposal.candidates,
            waiting=(),
        )
        if policy.screening is None
        else Screening(
            target=state.target,
            search=again,
            ranking=state.ranking,
            candidates=proposal.candidates,
        )
    )
    tasks = ", ".join(dict.fromkeys(item.task_name for item in proposal.candidates))
    candidates = count(len(proposal.candidates), "candidate")
    message = f"round {found.round + 1}: {candidates} for {tasks}"
    return Transition(next_state=following, message=message)


def screened(state: Screening, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Choose who is trained."""
    pairs = [
        (candidate, get(outcomes, screening(state, candidate, config).key, Screened))
        for candidate in state.candidates
    ]
    choice = POLICIES[config.prune.policy].choose(pairs, config.prune)
    slower = {screened.candidate_id: screened.slower for _, screened in pairs}
    found = with_decisions(
        with_screenings(state.search, [screened for _, screened in pairs]),
        [
            rejected(
                state,
                item,
                config,
                not_faster=True,
                slower=tuple(
                    group
                    for group in item.candidate.groups
                    if group in slower[item.candidate.candidate_id]
                ),
            )
            for item in choice.rejected
        ],
    )
    if not choice.chosen:
        return back(state, found, state.candidates, (), "no candidate is faster")
    following = FineTuning(
        target=state.target,
        search=found,
        ranking=state.ranking,
        chosen=choice.chosen,
        waiting=choice.waiting,
    )
    faster = len(choice.chosen) + len(choice.waiting)
    candidates = count(len(pairs), "candidate")
    message = f"{faster} of {candidates} faster by the programs, {len(choice.chosen)} to be trained"
    return Transition(next_state=following, message=message)


def retuned(state: Retuning, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """The programs of the new network are known."""
    key = retuning(state, config).key
    programs = programs_of(outcomes, key)
    found = with_programs(state.search, programs).model_copy(update={"tuned_key": key})
    message = f"{programs.measured_programs} programs measured, {programs.sum_ms:.4g} ms in all"
    return Transition(next_state=Ranking(target=state.target, search=found), message=message)
