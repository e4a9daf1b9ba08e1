"""The steps of the search loop that decide on candidates, once trained and once compared."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.policies.gates import accuracy_refusal
from orchestrator.policies.judge import Verdict, pointless
from orchestrator.policies.names import POLICIES
from orchestrator.policies.screen import Rejection
from orchestrator.reading import get, programs_of
from orchestrator.search_parts import (
    back,
    comparison,
    cut,
    decision_of,
    fine_tuning,
    less_accurate,
    rejected,
    screening,
    taken_unmeasured,
    with_decisions,
)
from orchestrator.spending import (
    with_comparisons,
    with_trainings,
)
from orchestrator.states import (
    AnyState,
    Contender,
    FineTuning,
    Judging,
    Ranking,
    Retuning,
)
from orchestrator.transition import Clock, Transition
from orchestrator.wording import count
from schemas.config import RunConfig
from schemas.work import (
    Compared,
    FineTuned,
    Outcome,
)

Outcomes = Mapping[str, Outcome]


def fine_tuned(
    state: FineTuning, outcomes: Outcomes, config: RunConfig, clock: Clock
) -> Transition:
    """Let those that kept their accuracy through."""
    policy = POLICIES[config.prune.policy]
    contenders: list[Contender] = []
    failed: list[Rejection] = []
    trainings = [
        get(outcomes, fine_tuning(candidate, state.search.dense, config).key, FineTuned)
        for candidate in state.chosen
    ]
    networks = [training.network for training in trainings]
    made = {item.candidate_id: n for item, n in zip(state.chosen, networks, strict=True)}
    for candidate, training in zip(state.chosen, trainings, strict=True):
        network = training.network
        further = candidate.structure == candidate.parent.structure  # it has to gain by that
        step_ratio = config.prune.step_accuracy_ratio if policy.gates_steps else float(further)
        reason = accuracy_refusal(
            network.val_accuracy, candidate.parent.val_accuracy, step_ratio, state.search.floor
        )
        if further and network.weights == candidate.parent.weights:
            reason = "the training gained nothing"
        if reason and training.diverged:
            reason = f"{reason}: its training diverged, {training.diverged}"
        if reason:
            failed.append(Rejection(candidate=candidate, reason=reason))
        else:
            contenders.append(Contender(candidate=candidate, network=network))
    dropped = pointless(state.waiting, failed)
    gone = {rejection.candidate.candidate_id for rejection in dropped}
    waiting = tuple(item for item in state.waiting if item.candidate_id not in gone)
    compared = policy.shortlist(contenders)
    failed += [
        Rejection(candidate=item.candidate, reason=less_accurate(item, compared))
        for item in contenders
        if item not in compared
    ]
    found = with_decisions(
        with_trainings(state.search, networks),
        [
            *(
                rejected(state, item, config, trained=made[item.candidate.candidate_id])
                for item in failed
            ),
            *(rejected(state, item, config) for item in dropped),
        ],
    )
    if policy.screening is None and compared:
        return taken_unmeasured(state, found, compared[0], config)
    if not compared:
        decided = [*state.chosen, *(rejection.candidate for rejection in dropped)]
        return back(state, found, decided, waiting, "no candidate kept its accuracy")
    following = Judging(
        target=state.target,
        search=found,
        ranking=state.ranking,
        contenders=tuple(compared),
        waiting=waiting,
    )
    candidates = count(len(state.chosen), "candidate")
    message = f"{len(contenders)} of {candidates} kept the accuracy"
    return Transition(next_state=following, message=message)


def judged(state: Judging, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Accept the best contender that is faster beyond the noise."""
    keys = {item.candidate.candidate_id: comparison(state, item).key for item in state.contenders}
    compared = {name: get(outcomes, key, Compared) for name, key in keys.items()}
    comparisons = {
        name: outcome.comparison for name, outcome in compared.items() if outcome.comparison
    }
    ran = [
        (item, comparisons[item.candidate.candidate_id])
        for item in state.contenders
        if item.candidate.candidate_id in comparisons
    ]
    verdict = Verdict(accepted=None, reasons={})
    if ran:
        policy = POLICIES[config.prune.policy]
        verdict = policy.judge(ran, state.search.current.val_accuracy, config.prune)
    decisions = [
        decision_of(
            state,
            item.candidate,
            config,
            trained=item.network,
            compare_key=keys[name],
            accepted=name == verdict.accepted,
            not_faster=name in verdict.not_faster,
            reason=verdict.reasons.get(name) or compared[name].failed,
        )
        for item in state.contenders
        for name in (item.candidate.candidate_id,)
    ]
    found = with_decisions(with_comparisons(state.search, list(compared.values())), decisions)
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
        [rejected(state, Rejection(candidate=item, reason=late), config) for item in state.waiting],
    )
    screened = screening(state, accepted.candidate, config)
    before = programs_of(outcomes, found.tuned_key)
    after = programs_of(outcomes, screened.key)
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
            "trained_key": winner.fine_tune_key,
            "current_ms": comparisons[winner.candidate_id].candidate.latency_ms,
            "tuned_key": screened.key,
            "accepted": found.accepted + 1,
            "set_aside": (),
        }
    )
    following: AnyState = (
        Ranking(target=state.target, search=found)
        if screened.by == "search_all"  # by whose rules programs are timed by themselves
        else Retuning(target=state.target, search=found, modules=modules)
    )
    message = f"{accepted.candidate.task_name} {cut(accepted.candidate)} {winner.reason}"
    return Transition(next_state=following, message=message)
