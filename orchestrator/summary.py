"""What a run came to: the summary, made of the ledger's record alone.

Pure: the same record gives the same summary. Any part of a record may be missing, as in a run that
is still going, that failed, or that was stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.held_out import excess_test_loss
from orchestrator.prediction import predictor_of
from orchestrator.speedup import interquartile_range, is_dense, lower_bound, verdict_of
from schemas.base import content_key
from schemas.network import ChannelGroup, Structure, Trained
from schemas.record import RunRecord, StepRecord, TargetRecord, WorkRecord
from schemas.summary import (
    LibraryCheck,
    NetworkSummary,
    StepSummary,
    Summary,
    TargetSummary,
    TaskSummary,
    WrongProgram,
)
from schemas.work import (
    Compared,
    Exported,
    ExportedNetwork,
    ExportWork,
    FineTuned,
    FineTuneWork,
    Prepared,
    PrepareWork,
    Screened,
    Tuned,
    TuneWork,
    UniformTrained,
    UniformWork,
)


def summarise(record: RunRecord) -> Summary:
    """The summary of a run, whatever state it is in."""
    known = {target.target: target for target in record.targets}
    for config in record.config.targets:
        known.setdefault(config.name, _untouched(config.name))
    return Summary(
        run=record.config.run,
        state=record.state,
        error=record.error,
        wall_s=record.wall_s,
        started=record.started,
        versions=record.versions,
        synthetic_data=record.config.data.synthetic,
        phases_s=record.phases_s,
        wrong_programs=_wrong_programs(record),
        targets=[_target(record, target) for target in known.values()],
    )


def summary_schema() -> dict[str, Any]:
    """The JSON schema of ``summary.json``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Summary.model_json_schema(mode="serialization"),
    }


# -------------------------------------------------------------------- finding in the record


def prepared_of(record: RunRecord) -> Prepared | None:
    """The dense network and its channel groups, once there are any."""
    for item in reversed(record.work):
        if isinstance(item.work, PrepareWork) and isinstance(item.outcome, Prepared):
            return item.outcome
    return None


def exported_of(record: RunRecord, target: str) -> Exported | None:
    """What the last export for a target told."""
    found = _export_of(record, target)
    return found[1] if found else None


def _export_of(record: RunRecord, target: str) -> tuple[ExportWork, Exported] | None:
    for item in reversed(record.work):
        if (
            isinstance(item.work, ExportWork)
            and isinstance(item.outcome, Exported)
            and item.work.target == target
        ):
            return item.work, item.outcome
    return None


def has_gone_on(record: RunRecord, target: TargetRecord) -> bool:
    """Whether the search went on after its last export, which is then of an earlier network."""
    found = _export_of(record, target.target)
    return found is not None and target.final != found[0].final


def work_of(record: RunRecord, target: TargetRecord) -> Iterator[WorkRecord]:
    """The finished work behind one target's result.

    Training belongs to no target by itself: the dense and the uniform network are every target's,
    and a fine-tuning is of those targets that decided upon it or ended with it.
    """
    candidates = [step.candidate for step in target.steps]
    judged = {
        content_key((item.trained_from or item.parent).weights, item.structure)
        for item in candidates
    }
    reached = [target.current, *(item.parent for item in candidates)]  # each may be trained further
    judged |= {content_key(item.weights, item.structure) for item in reached if item is not None}
    kept = {network.weights for network in (*reached, target.final) if network is not None}
    alone = len(record.config.targets) == 1
    for item in record.work:
        work, outcome = item.work, item.outcome
        if isinstance(work, PrepareWork | UniformWork):
            yield item
        elif isinstance(work, FineTuneWork):
            known = content_key(work.parent.weights, work.structure) in judged
            ended = isinstance(outcome, FineTuned) and outcome.network.weights in kept
            if alone or known or ended:
                yield item
        elif work.target == target.target:
            yield item


def trained_by(item: WorkRecord) -> Trained | None:
    """The network a unit of work trained, if that is what it did."""
    outcome = item.outcome
    if isinstance(outcome, Prepared):
        return outcome.dense
    if isinstance(outcome, FineTuned | UniformTrained):
        return outcome.network
    return None


def tuned_by(item: WorkRecord) -> Tuned | None:
    """The measured programs of a unit of work; an export only repeats those of others."""
    if isinstance(item.outcome, Tuned):
        return item.outcome
    return item.outcome.tuned if isinstance(item.outcome, Screened) else None


def device_s_of(item: WorkRecord) -> float:
    """Device seconds of a unit of work."""
    if isinstance(item.outcome, Compared | Exported):
        return item.outcome.device_s
    tuned = tuned_by(item)
    return tuned.device_s if tuned else 0.0


# ------------------------------------------------------------------------------ one target


def _untouched(name: str) -> TargetRecord:
    return TargetRecord(
        target=name,
        state="waiting",
        accuracy_floor=None,
        current=None,
        final=None,
        steps=(),
        stopped_by="",
    )


def _target(record: RunRecord, target: TargetRecord) -> TargetSummary:
    prepared = prepared_of(record)
    export, exported = _export_of(record, target.target) or (None, None)
    batch = record.config.input.batch_size
    final = export.final if export else target.final or target.current
    work = list(work_of(record, target))
    tuned = [found for found in map(tuned_by, work) if found is not None]
    before = exported.dense_tuned if exported else _tuned_for(work, Structure())
    dense = final is not None and prepared is not None and is_dense(final, prepared.dense)
    after = exported.final_tuned if exported else None
    if after is None and final is not None:
        after = _tuned_for(work, final.structure)
    if dense:
        after = None
    confidence = record.config.prune.confidence
    ratios = exported.speedup_ratios if exported and not dense else ()
    trained = [found for found in map(trained_by, work) if found is not None]
    return TargetSummary(
        target=target.target,
        device_model=next((t.device_model for t in reversed(tuned)), None)
        or (before.device_model if before else None),
        simulated=_simulated(record, target, work, exported),
        accuracy_floor=target.accuracy_floor,
        latency_target_ms=record.config.prune.latency_target_ms,
        meets_latency_target=_meets_target(record, exported),
        baseline=_network(exported.dense, batch) if exported else None,
        final=_network(exported.final, batch) if exported else None,
        excess_test_loss=_excess_test_loss(record, target, exported),
        test_images=exported.test_images if exported else None,
        trainings=len(trained),
        uniform=_network(exported.uniform, batch) if exported and exported.uniform else None,
        uniform_speedup=_uniform_speedup(exported) if exported else None,
        speedup=statistics.median(ratios) if ratios else None,
        speedup_low=lower_bound(ratios, confidence) if ratios else None,
        speedup_comparisons=len(ratios),
        speedup_verdict=verdict_of(exported, confidence, dense=dense) if exported else None,
        steps=[_step(step) for step in target.steps],
        widths=_widths(prepared.groups if prepared else (), final),
        tasks_before=_tasks(before),
        tasks_after=_tasks(after),
        outside_tasks_before=_outside_tasks(before),
        outside_tasks_after=_outside_tasks(after),
        measured_programs=sum(found.measured_programs for found in tuned),
        measured_models=sum(_models(item) for item in work),
        failed_programs=sum(found.failed_programs for found in tuned),
        device_s=sum(device_s_of(item) for item in work),
        device_slowed=_device_slowed(work),
        train_s=sum(network.train_s for network in trained),
        predictor=predictor_of(target.steps),
        library_check=_check(exported) if exported else None,
        artifacts=exported.artifacts if exported else {},
        notes=[*(exported.notes if exported else ()), *_gone_on(record, target)],
        stopped_by=target.stopped_by,
    )


def _device_slowed(work: Sequence[WorkRecord]) -> float | None:
    compared = [item.outcome.comparison for item in work if isinstance(item.outcome, Compared)]
    ratios = [found.candidate.canary_ratio for found in compared if found is not None]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def _gone_on(record: RunRecord, target: TargetRecord) -> tuple[str, ...]:
    if not has_gone_on(record, target):
        return ()
    return (
        "the search has gone on since: the figures and the artefacts are of the network that was "
        "exported before",
    )


def _network(network: ExportedNetwork, batch_size: int) -> NetworkSummary:
    latency = network.latency.latency_ms
    return NetworkSummary(
        latency_ms=latency,
        latency_ms_iqr=interquartile_range(network.latency.run_ms),
        fps=batch_size / latency * 1000.0 if latency > 0 else 0.0,
        val_accuracy=network.val_accuracy,
        test_accuracy=network.test_accuracy,
        macs=network.info.macs,
        params=network.info.params,
    )


def _meets_target(record: RunRecord, exported: Exported | None) -> bool | None:
    target_ms = record.config.prune.latency_target_ms
    if target_ms is None or exported is None:
        return None
    return exported.final.latency.latency_ms <= target_ms


def _excess_test_loss(
    record: RunRecord, target: TargetRecord, exported: Exported | None
) -> float | None:
    """Only of shares of images: a metric of one's own may be anything."""
    if exported is None or target.accuracy_floor is None:
        return None
    if record.config.metric not in ("top1", "top5"):
        return None
    return excess_test_loss(
        exported.dense.test_accuracy,
        exported.final.test_accuracy,
        exported.test_images,
        max(0.0, exported.dense.val_accuracy - target.accuracy_floor),
    )


def _uniform_speedup(exported: Exported) -> float | None:
    """Of medians alone: the uniform network was compared with the dense one by itself."""
    if exported.uniform is None:
        return None
    return exported.dense.latency.latency_ms / exported.uniform.latency.latency_ms


def _step(step: StepRecord) -> StepSummary:
    return StepSummary(
        task=step.candidate.task_name,
        groups=list(step.candidate.groups),
        widths_before=list(step.candidate.widths_before),
        widths_after=list(step.candidate.widths_after),
        latency_ms=step.comparison.candidate.latency_ms if step.comparison else None,
        screened_ms=step.screened_ms,
        val_accuracy=step.val_accuracy,
        accepted=step.accepted,
        reason=step.reason,
    )


def _widths(groups: Sequence[ChannelGroup], final: Trained | None) -> dict[str, tuple[int, int]]:
    kept = final.structure.widths if final else {}
    return {
        group.group_id: (group.channels, kept.get(group.group_id, group.channels))
        for group in groups
        if group.prunable
    }


def _tasks(tuned: Tuned | None) -> list[TaskSummary]:
    if tuned is None:
        return []
    names = {task.task_id: task.name for task in tuned.table.tasks}
    ran = [entry for entry in tuned.latencies if math.isfinite(entry.latency_ms)]
    total = sum(entry.cost_ms * tuned.table.weight(entry.task_id) for entry in ran)
    entries = sorted(ran, key=lambda entry: -entry.cost_ms * tuned.table.weight(entry.task_id))
    return [
        TaskSummary(
            task=names.get(entry.task_id, entry.task_id[:12]),
            modules=list(tuned.table.modules(entry.task_id)),
            subgraphs=tuned.table.weight(entry.task_id),
            program_ms=entry.latency_ms,
            in_model_ms=entry.in_model_ms,
            share=entry.cost_ms * tuned.table.weight(entry.task_id) / total if total else 0.0,
            channel_tiles=list(entry.channel_tiles),
            trials=entry.lineage_trials,
        )
        for entry in entries
    ]


def _outside_tasks(tuned: Tuned | None) -> float | None:
    if tuned is None or not tuned.model_ms:
        return None
    return 1.0 - tuned.sum_ms / tuned.model_ms


def _tuned_for(work: Sequence[WorkRecord], structure: Structure) -> Tuned | None:
    """The latest tuning of a structure, or else its screening."""
    screened: Tuned | None = None
    for item in reversed(work):
        if isinstance(item.work, TuneWork) and isinstance(item.outcome, Tuned):
            network = item.work.network
            is_uniform = item.work.fraction is not None
            if network is not None and network.structure == structure and not is_uniform:
                return item.outcome
        elif isinstance(item.outcome, Screened) and screened is None:
            if getattr(item.work, "candidate", None) and (
                item.work.candidate.structure == structure  # type: ignore[union-attr]
            ):
                screened = item.outcome.tuned
    return screened


def _wrong_programs(record: RunRecord) -> list[WrongProgram]:
    """Those that this run measured; others' were never to be used."""
    tuned = [found for item in record.work if (found := tuned_by(item)) is not None]
    names = {task.task_id: task.name for found in tuned for task in found.table.tasks}
    return [
        WrongProgram(
            task=names.get(program.task_id, program.task_id),
            device_model=program.device_model,
            error=program.error,
            trace=program.trace,
        )
        for program in record.condemned
        if not program.is_shared
    ]


def _models(item: WorkRecord) -> int:
    """Whole networks measured by a unit of work."""
    if isinstance(item.outcome, Compared):
        return 2 if item.outcome.comparison else 0
    if isinstance(item.outcome, Exported):
        return 3 if item.outcome.uniform else 2
    return 0


def _check(exported: Exported) -> LibraryCheck:
    return LibraryCheck(
        images=exported.checked_images,
        max_abs_difference=exported.max_abs_difference,
        max_abs_output=exported.max_abs_output,
    )


def _simulated(
    record: RunRecord, target: TargetRecord, work: Sequence[WorkRecord], exported: Exported | None
) -> bool:
    """Whether any latency came from a recording or from simulated devices."""
    if any(t.name == target.target and t.device == "replay" for t in record.config.targets):
        return True
    if any(tuned.simulated for tuned in map(tuned_by, work) if tuned is not None):
        return True
    measurements = [step.comparison.candidate for step in target.steps if step.comparison]
    if exported:
        measurements += [exported.dense.latency, exported.final.latency]
    return any(measurement.simulated for measurement in measurements)
