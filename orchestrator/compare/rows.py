"""A method's row, made of its run's record and of the last measurement of all rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from orchestrator.compare.finals import Finals
from orchestrator.compare.methods import ABLATIONS, DENSE, ORIGINAL, OURS
from orchestrator.compare.searched import at_time, cuts_of, is_capped, search_programs, search_s
from orchestrator.policies.gates import meets_floor
from orchestrator.speedup import lower_bound
from orchestrator.summary import exported_of, summarise
from schemas.comparison import Bound, MethodRow, MethodTable
from schemas.record import RunRecord
from schemas.work import Exported


def table_of(
    records: Mapping[str, RunRecord],
    target: str,
    finals: Finals | None,
    *,
    is_quick: bool,
    not_run: Mapping[str, str] | None = None,
) -> MethodTable:
    """The comparison on one target, of finished runs by their methods. ``finals``: all rows
    measured beside the dense one; without it each row's own run says how it compares. ``not_run``:
    methods that could not run, with the reason."""
    rows = [_row(method, record, target, finals) for method, record in records.items()]
    ours = next((row for row in rows if row.method == OURS), None)
    if ours is not None:
        rows = [_beside(row, ours) for row in rows]
    original = next((row for row in rows if row.method == ORIGINAL), None)
    others = [row for row in rows if row.method not in (DENSE, OURS, *ABLATIONS)]
    rivals = [row for row in others if row.meets_floor and ours is not None]
    # The one that comes nearest to ours where they are compared: over the dense network their
    # order may be another, in a spell that slows one of them.
    best = min(rivals, key=lambda row: _ratio_to(row, ours) or math.inf, default=None)
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
        speedup_bound=ours.speedup_bound if ours else None,
        best_baseline=best.method if best else None,
        best_of=[row.method for row in others],
        best_baseline_ratio=_ratio_to(best, ours),
        best_baseline_bound=(
            _bound(others_capped=any(row.capped for row in others), ours_capped=ours.capped)
            if best and ours
            else None
        ),
        measured_programs_ratio=_per_cut(ours, original, "search_programs"),
        search_time_ratio=_per_cut(ours, original, "search_s"),
        cost_ratio_caps=(
            {row.method: row.decided for row in (ours, original) if row.capped}
            if ours and original
            else {}
        ),
        original_at_our_time=(
            at_time(records[ORIGINAL], target, ours.search_s)
            if ours is not None and original is not None
            else None
        ),
        not_run=dict(not_run or {}),
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
    capped = method != DENSE and is_capped(state)
    floor = summary.accuracy_floor or 0.0
    return MethodRow(
        method=method,
        run=method.replace(" ", "-"),
        latency_ms=latency_ms,
        fps=record.config.input.batch_size / latency_ms * 1000.0,
        speedup=statistics.median(ratios),
        speedup_bound=_bound(others_capped=False, ours_capped=capped),
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
        cuts=cuts_of([step.candidate for step in state.steps]),
        trained=sum(step.val_accuracy is not None for step in state.steps),
        measured_programs=summary.measured_programs,
        search_programs=search_programs(record, state),
        search_s=search_s(record, state),
        wall_s=record.wall_s,
        device_s=summary.device_s,
        train_s=summary.train_s,
        stopped_by=state.stopped_by,
        capped=capped,
        ours_is_faster_by=statistics.median(beside_ours) if beside_ours else None,
        ours_is_faster_low=lower_bound(beside_ours, confidence) if beside_ours else None,
    )


def _beside(row: MethodRow, ours: MethodRow) -> MethodRow:
    """The row, with what limits make of the figure by which ours is faster."""
    if row.ours_is_faster_by is None:
        return row
    bound = _bound(others_capped=row.capped, ours_capped=ours.capped)
    return row.model_copy(update={"ours_is_faster_bound": bound})


def _bound(*, others_capped: bool, ours_capped: bool) -> Bound | None:
    """What others' latency over ours is where limits ended searches, each of which might have gone
    on to a faster network."""
    if others_capped and ours_capped:
        return "open"
    if others_capped:
        return "upper"
    return "lower" if ours_capped else None


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


def _per_cut(ours: MethodRow | None, original: MethodRow | None, field: str) -> float | None:
    if ours is None or original is None or not ours.cuts or not original.cuts:
        return None
    theirs = getattr(original, field) / original.cuts
    return float(getattr(ours, field) / ours.cuts / theirs) if theirs else None
