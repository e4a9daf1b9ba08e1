"""The steps after the search: long training, long tuning of both networks alike, export."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from orchestrator.policies.gates import latency_gate, meets_floor
from orchestrator.policies.judge import ACCURACY_GRAIN
from orchestrator.policies.names import POLICIES
from orchestrator.reading import get, programs_of
from orchestrator.search_parts import long_training
from orchestrator.speedup import in_words, is_dense, verdict_of
from orchestrator.spending import with_comparisons, with_trainings
from orchestrator.states import (
    Choosing,
    Done,
    Exporting,
    FinishTraining,
    FinishTuning,
    Ranking,
    Search,
)
from orchestrator.transition import Clock, Transition
from schemas.config import RunConfig
from schemas.network import Trained
from schemas.work import (
    Compared,
    CompareWork,
    Exported,
    ExportWork,
    FineTuned,
    FineTuneWork,
    Outcome,
    Tuned,
    TuneWork,
)

Outcomes = Mapping[str, Outcome]


def training(state: FinishTraining, config: RunConfig) -> tuple[FineTuneWork, ...]:
    """The long training; none for the dense network, nor for one that was trained so already."""
    if not _has_new_steps(state.search) or not config.fine_tune.long_epochs:
        return ()
    current = state.search.current
    return (long_training(current, current.structure, state.search.dense, config),)


def tuning(state: FinishTuning, config: RunConfig) -> TuneWork:
    """First the final network's tuning, and that of the one it is chosen against, if there is one;
    then that of what it is held to, the baseline at the end.

    The uniform network may share tasks with the final one, which gains by its trials: so the
    baseline's are counted when no other network is tuned any more.
    """
    total = config.tune.final_trials_per_task
    if state.baseline_trials is not None:
        return TuneWork(
            target=state.target,
            network=state.search.dense,
            trials_per_task=total,
            trials=state.baseline_trials,
        )
    if state.uniform_trials is not None:
        return TuneWork(
            target=state.target,
            network=state.search.uniform,
            fraction=config.compare_uniform,
            trials_per_task=total,
            trials=state.uniform_trials,
        )
    if state.tunes_wider:
        return TuneWork(target=state.target, network=state.wider, trials_per_task=total)
    return final_tuning(state, config)


def final_tuning(state: FinishTuning, config: RunConfig) -> TuneWork:
    """The final network's tuning."""
    total = config.tune.final_trials_per_task
    return TuneWork(target=state.target, network=state.final, trials_per_task=total)


def choice(state: Choosing) -> CompareWork:
    """The paired measurement of the networks before and after the last step."""
    return CompareWork(
        target=state.target, reference=state.wider, candidate=state.final, label="last step"
    )


def export(state: Exporting, config: RunConfig) -> ExportWork:
    """The hand-over."""
    return ExportWork(
        target=state.target,
        dense=state.search.dense,
        final=state.final,
        uniform=state.search.uniform,
        fraction=config.compare_uniform,
    )


def trained(
    state: FinishTraining, outcomes: Outcomes, config: RunConfig, clock: Clock
) -> Transition:
    """Take the long-trained weights, if they meet the floor as the accepted ones do.

    The search goes on with them where no budget ended it and they are better than they have to be.
    """
    found = state.search
    final, message = found.current, "no further long training: the network stays as it is"
    trained_key, spare = found.trained_key, 0.0
    for work in training(state, config):
        network = get(outcomes, work.key, FineTuned).network
        final, message = _keep(network, found.current, found.floor)
        counted = (*found.trained_long, *(item.fine_tune_key for item in found.decisions))
        if work.key not in counted:
            found = with_trainings(found, [network]).model_copy(
                update={"trained_long": (*found.trained_long, work.key)}
            )
        if final is network and network.weights != found.current.weights:
            trained_key, spare = work.key, network.val_accuracy - found.floor
    if state.goes_on or (_may_go_on(found, config) and spare >= ACCURACY_GRAIN):
        update = {
            "current": final,
            "trained_key": trained_key,
            "recovered_after": len(found.decisions),
            "set_aside": (),
            "stopped_by": "",
        }
        following = Ranking(target=state.target, search=found.model_copy(update=update))
        above = f", {spare:.4f} above the floor" if spare else ""
        message = f"{message}{above}: the search goes on"
        return Transition(next_state=following, message=message)
    finished = FinishTuning(target=state.target, search=found, final=final, wider=found.wider)
    return Transition(next_state=finished, message=message)


def tuned(state: FinishTuning, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """From the final network's tuning to that of its rivals, and on to the export."""
    programs = programs_of(outcomes, tuning(state, config).key)
    told = f"{programs.measured_programs} programs measured, {programs.sum_ms:.4g} ms in all"
    if state.baseline_trials is not None:
        following = Exporting(target=state.target, search=state.search, final=state.final)
        return Transition(next_state=following, message=f"baseline: {told}")
    if state.tunes_wider and state.wider is not None:
        both = Choosing(
            target=state.target, search=state.search, final=state.final, wider=state.wider
        )
        return Transition(next_state=both, message=f"before the last step: {told}")
    if state.wider is not None:
        again = state.model_copy(update={"tunes_wider": True})
        return Transition(next_state=again, message=f"after the last step: {told}")
    total = config.tune.final_trials_per_task
    final = programs_of(outcomes, final_tuning(state, config).key)
    if state.uniform_trials is None and state.search.uniform is not None:
        again = state.model_copy(update={"uniform_trials": baseline_trials(final, total)})
        return Transition(next_state=again, message=f"final network: {told}")
    trials = baseline_trials(final, total, programs)
    again = state.model_copy(update={"baseline_trials": trials})
    name = "final network" if state.uniform_trials is None else "uniform network"
    return Transition(next_state=again, message=f"{name}: {told}")


def chosen(state: Choosing, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """The faster network, by the mean of the paired ratios, is the final one."""
    compared = get(outcomes, choice(state).key, Compared)
    search = with_comparisons(state.search, [compared])
    if compared.comparison is None:
        following = FinishTuning(target=state.target, search=search, final=state.wider)
        message = f"the network before the last step is the final one: {compared.failed}"
        return Transition(next_state=following, message=message)
    ratio = latency_gate(compared.comparison, 1.0, config.prune.confidence).ratio
    final = state.final if ratio < 1.0 else state.wider
    following = FinishTuning(target=state.target, search=search, final=final)
    message = (
        f"the network {'after' if ratio < 1.0 else 'before'} the last step is the final one: the "
        f"step takes it to {ratio:.4f} of the latency"
    )
    return Transition(next_state=following, message=message)


def exported(state: Exporting, outcomes: Outcomes, config: RunConfig, clock: Clock) -> Transition:
    """Everything is handed over."""
    found = get(outcomes, export(state, config).key, Exported)
    ratios = found.speedup_ratios
    dense = is_dense(state.final, state.search.dense)
    verdict = verdict_of(found, config.prune.confidence, dense=dense)
    told = in_words(verdict, statistics.median(ratios) if ratios else None, len(ratios))
    changes = (
        f"{found.dense.latency.latency_ms:.4g} ms, test accuracy {found.dense.test_accuracy:.4f}"
        if dense
        else f"{found.dense.latency.latency_ms:.4g} ms -> {found.final.latency.latency_ms:.4g} ms, "
        f"test accuracy {found.dense.test_accuracy:.4f} -> {found.final.test_accuracy:.4f}"
    )
    message = f"{told + ', ' if told else ''}{changes}" + "".join(
        f"; {note}" for note in found.notes
    )
    following = Done(target=state.target, search=state.search, final=state.final)
    return Transition(next_state=following, message=message)


def baseline_trials(final: Tuned, total: int, *later: Tuned) -> dict[str, int]:
    """Torch module -> trials its dense task needs beyond ``total`` to match the final network's.

    ``later`` are tunings since then, whose programs serve the final network where tasks are shared.
    """
    received: dict[str, int] = {}
    for tuned in (final, *later):
        for entry in tuned.latencies:
            received[entry.task_id] = max(received.get(entry.task_id, 0), entry.lineage_trials)
    trials: dict[str, int] = {}
    for subgraph in final.table.subgraphs:
        if subgraph.module is None:
            continue
        needed = received[subgraph.task_id]
        if needed > max(total, trials.get(subgraph.module, 0)):
            trials[subgraph.module] = needed
    return dict(sorted(trials.items()))


def _may_go_on(found: Search, config: RunConfig) -> bool:
    return POLICIES[config.prune.policy].recovers and found.ended_by_itself


def _has_new_steps(found: Search) -> bool:
    return any(decision.accepted for decision in found.decisions[found.recovered_after :])


def _keep(network: Trained, accepted: Trained, floor: float) -> tuple[Trained, str]:
    reached = f"validation accuracy {network.val_accuracy:.4f} after the long training"
    if meets_floor(network.val_accuracy, floor):
        return network, reached
    return accepted, (
        f"{reached}, below the floor of {floor:.4f}: the weights of the last accepted step "
        f"({accepted.val_accuracy:.4f}) are kept"
    )
