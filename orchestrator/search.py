"""The steps of the search loop: from the dense network to the last accepted step."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.policies.gates import accuracy_refusal, floor_of
from orchestrator.policies.judge import judge, pointless
from orchestrator.policies.propose import propose, rank_tasks
from orchestrator.policies.screen import Rejection, choose
from orchestrator.reading import get, programs_of
from orchestrator.search_parts import (
    back,
    comparison,
    cut,
    dense_tuning,
    fine_tuning,
    rejected,
    retuning,
    screening,
    searched_s,
    spent_budget,
    stop,
    with_decisions,
)
from orchestrator.states import (
    AnyState,
    Contender,
    Decision,
    Failed,
    FineTuning,
    Judging,
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
    Compared,
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
    found = state.search.model_copy(update={"tuned_key": key, "began_s": clock.wall_s})
    message = (
        f"{programs.measured_programs} programs measured, {len(programs.latencies)} tasks, "
        f"{programs.sum_ms:.4g} ms in all"
    )
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
    spent = spent_budget(found, searched_s(found, clock), config.budget)
    if spent:
        return stop(state, spent, clock)
    proposal = propose(
        state.ranking,
        programs_of(outcomes, found.tuned_key),
        get(outcomes, found.prepare_key, Prepared).groups,
        found.current,
        found.set_aside,
        {decision.candidate_id for decision in found.decisions},
        config.prune,
    )
    if not proposal.candidates:
        why = "; ".join(proposal.passed_over) or "no task has a prunable group"
        return stop(state, f"no step is left that pays ({why})", clock)
    following = Screening(
        target=state.target,
        search=found.model_copy(update={"round": found.round + 1}),
        ranking=state.ranking,
        candidates=proposal.candidates,
    )
    tasks = ", ".join(dict.fromkeys(item.task_name for item in proposal.candidates))
    candidates = count(len(proposal.candidates), "candidate")
    message = f"round {found.round + 1}: {candidates} for {tasks}"
    return Transition(next_state=following, message=message)


def screened(state: Screening, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Choose who is trained."""
    pairs = [
        (candidate, get(outcomes, screening(state, candidate).key, Screened))
        for candidate in state.candidates
    ]
    choice = choose(pairs, config.prune)
    found = with_decisions(
        state.search, [rejected(state, rejection) for rejection in choice.rejected]
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


def fine_tuned(
    state: FineTuning, outcomes: Outcomes, config: RunConfig, clock: Clock
) -> Transition:
    """Let those that kept their accuracy through."""
    found, contenders, failed = state.search, [], []
    for candidate in state.chosen:
        network = get(outcomes, fine_tuning(candidate, config).key, FineTuned).network
        reason = accuracy_refusal(
            network.val_accuracy,
            candidate.parent.val_accuracy,
            config.prune.step_accuracy_ratio,
            found.floor,
        )
        if reason:
            failed.append(Rejection(candidate=candidate, reason=reason))
        else:
            contenders.append(Contender(candidate=candidate, network=network))
    dropped = pointless(state.waiting, failed)
    gone = {rejection.candidate.candidate_id for rejection in dropped}
    waiting = tuple(item for item in state.waiting if item.candidate_id not in gone)
    found = with_decisions(
        found,
        [
            *(rejected(state, item, fine_tuning(item.candidate, config).key) for item in failed),
            *(rejected(state, item) for item in dropped),
        ],
    )
    if not contenders:
        decided = [*state.chosen, *(rejection.candidate for rejection in dropped)]
        return back(state, found, decided, waiting, "no candidate kept its accuracy")
    following = Judging(
        target=state.target,
        search=found,
        ranking=state.ranking,
        contenders=tuple(contenders),
        waiting=waiting,
    )
    candidates = count(len(state.chosen), "candidate")
    message = f"{len(contenders)} of {candidates} kept the accuracy"
    return Transition(next_state=following, message=message)


def judged(state: Judging, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Accept the best contender that is faster beyond the noise."""
    keys = {item.candidate.candidate_id: comparison(state, item).key for item in state.contenders}
    verdict = judge(
        [
            (item, get(outcomes, keys[item.candidate.candidate_id], Compared).comparison)
            for item in state.contenders
        ],
        state.search.current.val_accuracy,
        config.prune,
    )
    decisions = [
        Decision(
            round=state.search.round,
            candidate_id=name,
            task_id=item.candidate.task_id,
            screen_key=screening(state, item.candidate).key,
            fine_tune_key=fine_tuning(item.candidate, config).key,
            compare_key=keys[name],
            accepted=name == verdict.accepted,
            reason=verdict.reasons[name],
        )
        for item in state.contenders
        for name in (item.candidate.candidate_id,)
    ]
    found = with_decisions(state.search, decisions)
    winner = next((d for d in decisions if d.accepted), None)
    if winner is None:
        decided = [item.candidate for item in state.contenders]
        return back(state, found, decided, state.waiting, "no candidate passed the latency gate")
    accepted = next(
        item for item in state.contenders if item.candidate.candidate_id == winner.candidate_id
    )
    late = "not trained: another step of its round was accepted"
    found = with_decisions(
        found,
        [rejected(state, Rejection(candidate=item, reason=late)) for item in state.waiting],
    )
    before = programs_of(outcomes, found.tuned_key)
    after = programs_of(outcomes, winner.screen_key)
    known = {task.task_id for task in before.table.tasks}
    modules = tuple(
        dict.fromkeys(
            subgraph.module
            for subgraph in after.table.subgraphs
            if subgraph.module is not None and subgraph.task_id not in known
        )
    )
    found = found.model_copy(
        update={
            "current": accepted.network,
            "tuned_key": winner.screen_key,
            "accepted": found.accepted + 1,
            "set_aside": (),
        }
    )
    following: AnyState = (
        Retuning(target=state.target, search=found, modules=modules)
        if modules and config.tune.retune_trials_per_task
        else Ranking(target=state.target, search=found)
    )
    message = f"{accepted.candidate.task_name} {cut(accepted.candidate)} {winner.reason}"
    return Transition(next_state=following, message=message)


def retuned(state: Retuning, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """The programs of the new network are known."""
    key = retuning(state, config).key
    programs = programs_of(outcomes, key)
    found = state.search.model_copy(update={"tuned_key": key})
    message = f"{programs.measured_programs} programs measured, {programs.sum_ms:.4g} ms in all"
    return Transition(next_state=Ranking(target=state.target, search=found), message=message)
