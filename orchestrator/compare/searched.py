"""What a run's search took between the dense and the final tuning, and where it stood at a time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from orchestrator.policies.ladder import HAD_ENOUGH
from orchestrator.summary import tuned_by, work_of
from schemas.base import content_key
from schemas.comparison import AtOurTime
from schemas.record import RunRecord, StepRecord, TargetRecord, WorkRecord
from schemas.work import Candidate, Compared, CompareWork, FineTuneWork, ScreenWork, TuneWork, Work


def is_capped(state: TargetRecord) -> bool:
    """Whether a limit ended the search before its own end."""
    return state.stopped_by.startswith("budget.") or HAD_ENOUGH in state.stopped_by


def cuts_of(decided: Sequence[Candidate]) -> int:
    """How many cuts these candidates are. A further training belongs to the cut that it goes on
    with: it costs hardly any programs."""
    return len(
        {
            content_key(item.parent.structure, item.structure)
            for item in decided
            if item.structure != item.parent.structure
        }
    )


def search_s(record: RunRecord, state: TargetRecord) -> float:
    """Seconds from the end of the dense tuning to the beginning of the final one: the search, and
    the long training after its end, which ``searched_s`` does not hold."""
    ended_at = max(
        (e.at for e in record.events if e.target == state.target and e.state == "proposing"),
        default=0.0,
    )
    return state.searched_s + sum(
        min(item.seconds, max(0.0, item.finished_at - ended_at))
        for item in record.work
        if _is_last_training(item, state)
    )


def _is_last_training(item: WorkRecord, state: TargetRecord) -> bool:
    """Whether it trained the network that the search led to as it is."""
    work, current = item.work, state.current
    if not isinstance(work, FineTuneWork) or current is None:
        return False
    return work.parent.weights == current.weights and work.structure == current.structure


def at_time(record: RunRecord, target: str, seconds: float) -> AtOurTime:
    """Where a run's search stood after so many seconds; at its stop, where a limit came earlier.

    The seconds are those of its finished work since the dense network was tuned.
    """
    state = next(item for item in record.targets if item.target == target)
    stopped_after_s = None
    if is_capped(state) and state.searched_s < seconds:
        stopped_after_s, seconds = state.searched_s, math.inf
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
        stopped_after_s=stopped_after_s,
    )


def _is_about(item: WorkRecord, step: StepRecord) -> bool:
    """Whether the work was done for the candidate of a step."""
    work, candidate = item.work, step.candidate
    if isinstance(work, ScreenWork):
        return work.candidate.candidate_id == candidate.candidate_id
    if isinstance(work, FineTuneWork):
        start = candidate.trained_from or candidate.parent
        return work.parent.weights == start.weights and work.structure == candidate.structure
    if step.comparison is None or not isinstance(item.outcome, Compared):
        return False
    return item.outcome.comparison == step.comparison


def _is_search(work: Work) -> bool:
    """Whether the work lies between the dense and the final tuning."""
    if isinstance(work, TuneWork):
        return work.added_trials
    return isinstance(work, ScreenWork | FineTuneWork | CompareWork)


def search_programs(record: RunRecord, state: TargetRecord) -> int:
    """Programs measured between the dense and the final tuning."""
    return sum(
        tuned.measured_programs
        for item in work_of(record, state)
        if (tuned := tuned_by(item)) is not None and _is_search(item.work)
    )
