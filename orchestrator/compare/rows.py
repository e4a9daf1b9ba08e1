"""A method's row, made of its run's record and of the last measurement of all rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from orchestrator.compare.finals import Finals
from orchestrator.compare.methods import ABLATIONS, DENSE, ORIGINAL, OURS
from orchestrator.policies.gates import meets_floor
from orchestrator.speedup import lower_bound
from orchestrator.summary import exported_of, summarise, tuned_by, work_of
from schemas.comparison import AtOurTime, MethodRow, MethodTable
from schemas.record import RunRecord, StepRecord, TargetRecord, WorkRecord
from schemas.work import (
    Compared,
    CompareWork,
    Exported,
    FineTuneWork,
    ScreenWork,
    TuneWork,
    Work,
)


def table_of(
    records: Mapping[str, RunRecord],
    target: str,
    finals: Finals | None,
    *,
    is_quick: bool,
) -> MethodTable:
    """The comparison on one target, of finished runs by their methods. ``finals``: all rows
    measured beside the dense one; without it each row's own run says how it compares."""
    rows = [_row(method, record, target, finals) for method, record in records.items()]
    ours = next((row for row in rows if row.method == OURS), None)
    original = next((row for row in rows if row.method == ORIGINAL), None)
    rivals = [
        row
        for row in rows
        if row.method not in (DENSE, OURS, *ABLATIONS) and row.meets_floor and ours is not None
    ]
    best = max(rivals, key=lambda row: row.speedup, default=None)
    first = next(iter(records.values()))
    summaries = [
        next(t for t in summarise(record).targets if t.target == target)
        for record in records.values()
    ]
    return MethodTable(
        network=first.config.model.name,
        data=first.config.data.title,
        target=target,
        device_model=summaries[0].device_model,
        accuracy_floor=max(summary.accuracy_floor or 0.0 for summary in summaries),
        quick=is_quick,
        simulated=any(summary.simulated for summary in summaries),
        synthetic_data=first.config.data.synthetic,
        speedup_over_dense=ours.speedup if ours else None,
        best_baseline=best.method if best else None,
        best_baseline_ratio=_ratio_to(best, ours),
        measured_programs_ratio=_per_candidate(ours, original, "search_programs"),
        search_time_ratio=_per_candidate(ours, original, "search_s"),
        original_at_our_time=(
            at_time(records[ORIGINAL], target, ours.search_s)
            if ours is not None and original is not None
            else None
        ),
        rows=rows,
    )


def _row(method: str, record: RunRecord, target: str, finals: Finals | None) -> MethodRow:
    exported = exported_of(record, target)
    if exported is None:
        raise ValueError(f"the run of {method} has no result for {target}")
    summary = next(item for item in summarise(record).targets if item.target == target)
    confidence = record.config.prune.confidence
    ratios: Sequence[float] = exported.speedup_ratios
    latency_ms = exported.final.latency.latency_ms
    beside_ours: Sequence[float] = ()
    if finals is not None:
        latency_ms = finals.latency_ms(method)
    if method == DENSE:
        ratios = (1.0,)
    elif finals is not None:
        ratios = finals.over_dense(method)
    if finals is not None and method not in (DENSE, OURS):
        beside_ours = finals.over_ours(method)
    state = next(item for item in record.targets if item.target == target)
    floor = summary.accuracy_floor or 0.0
    return MethodRow(
        method=method,
        run=method.replace(" ", "-"),
        latency_ms=latency_ms,
        fps=record.config.input.batch_size / latency_ms * 1000.0,
        speedup=statistics.median(ratios),
        speedup_low=lower_bound(ratios, confidence),
        val_accuracy=exported.final.val_accuracy,
        test_accuracy=exported.final.test_accuracy,
        excess_test_loss=summary.excess_test_loss,
        test_top5=exported.final.test_top5,
        macs=exported.final.info.macs,
        params=exported.final.info.params,
        meets_floor=meets_floor(exported.final.val_accuracy, floor),
        least_trials=min(_trials(exported), default=0),
        most_trials=most_trials(exported),
        decided=len(state.steps),
        trained=sum(step.val_accuracy is not None for step in state.steps),
        measured_programs=summary.measured_programs,
        search_programs=_search_programs(record, state),
        search_s=state.searched_s,
        wall_s=record.wall_s,
        device_s=summary.device_s,
        train_s=summary.train_s,
        stopped_by=state.stopped_by,
        capped=method != DENSE and state.stopped_by.startswith("budget."),
        ours_is_faster_by=statistics.median(beside_ours) if beside_ours else None,
        ours_is_faster_low=lower_bound(beside_ours, confidence) if beside_ours else None,
    )


def at_time(record: RunRecord, target: str, seconds: float) -> AtOurTime:
    """Where a run's search stood after so many seconds.

    The seconds are those of its finished work since the dense network was tuned.
    """
    state = next(item for item in record.targets if item.target == target)
    ended: dict[str, float] = {}
    spent = 0.0
    for item in work_of(record, state):
        if not _is_search(item.work):
            continue
        spent += item.seconds
        for step in state.steps:
            if _is_about(item, step):
                ended[step.candidate.candidate_id] = spent
    in_time = [s for s in state.steps if ended.get(s.candidate.candidate_id, spent) <= seconds]
    taken = [s.comparison for s in in_time if s.accepted and s.comparison is not None]
    ratios = [
        statistics.median(
            before / after
            for before, after in zip(found.reference_ms, found.candidate_ms, strict=True)
        )
        for found in taken
    ]
    return AtOurTime(
        decided=len(in_time),
        accepted=sum(step.accepted for step in in_time),
        speedup=math.prod(ratios),
    )


def _is_about(item: WorkRecord, step: StepRecord) -> bool:
    """Whether the work was done for the candidate of a step."""
    work, candidate = item.work, step.candidate
    if isinstance(work, ScreenWork):
        return work.candidate.candidate_id == candidate.candidate_id
    if isinstance(work, FineTuneWork):
        same = work.parent.weights == candidate.parent.weights
        return same and work.structure == candidate.structure
    return isinstance(item.outcome, Compared) and item.outcome.comparison == step.comparison


def _is_search(work: Work) -> bool:
    """Whether the work lies between the dense and the final tuning."""
    if isinstance(work, TuneWork):
        return work.added_trials
    return isinstance(work, ScreenWork | FineTuneWork | CompareWork)


def _search_programs(record: RunRecord, state: TargetRecord) -> int:
    return sum(
        tuned.measured_programs
        for item in work_of(record, state)
        if (tuned := tuned_by(item)) is not None and _is_search(item.work)
    )


def most_trials(exported: Exported) -> int:
    """Of the final network's tasks, the most that one had."""
    return max(_trials(exported), default=0)


def _trials(exported: Exported) -> list[int]:
    """Trials of each task of the final network, with those of the tasks its programs descend from;
    tasks that only move or sum data, whose spaces are small, are left out."""
    tuned = exported.final_tuned
    kinds = {task.task_id: task.kind for task in tuned.table.tasks}
    return [e.lineage_trials for e in tuned.latencies if kinds[e.task_id] != "other"]


def _ratio_to(best: MethodRow | None, ours: MethodRow | None) -> float | None:
    if best is None or ours is None:
        return None
    return best.ours_is_faster_by or ours.speedup / best.speedup


def _per_candidate(ours: MethodRow | None, original: MethodRow | None, field: str) -> float | None:
    if ours is None or original is None or not ours.decided or not original.decided:
        return None
    theirs = getattr(original, field) / original.decided
    return float(getattr(ours, field) / ours.decided / theirs) if theirs else None
