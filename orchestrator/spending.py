"""What a search has spent, and whether a budget or the latency it was to reach ends it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.states import Search
from orchestrator.transition import Clock
from orchestrator.wording import count
from schemas.config import BudgetConfig, PruneConfig
from schemas.network import Trained
from schemas.work import Compared, Screened, Tuned


def searched_s(found: Search, clock: Clock) -> float:
    """How long the search has been going on."""
    return clock.wall_s - (found.began_s or 0.0)


def reached_target(found: Search, prune: PruneConfig) -> str:
    """Why the search ends with the latency it has; empty where it is to go on."""
    target_ms = prune.latency_target_ms
    if target_ms is None or found.current_ms > target_ms:
        return ""
    return f"prune.latency_target_ms: {found.current_ms:.4g} ms, the target is {target_ms:g} ms"


def spent_budget(found: Search, seconds: float, budget: BudgetConfig) -> str:
    """The budget that ends a search of so many seconds, by its field; empty while all last."""
    if found.round >= budget.max_rounds:
        return f"budget.max_rounds: {count(budget.max_rounds, 'round')} done"
    if budget.max_steps is not None and found.accepted >= budget.max_steps:
        return f"budget.max_steps: {count(found.accepted, 'step')} accepted"
    most = budget.max_measured_programs
    if most is not None and found.measured_programs >= most:
        return f"budget.max_measured_programs: {found.measured_programs} of {most} programs"
    limits = {
        "max_hours": (seconds, budget.max_hours),
        "max_device_hours": (found.device_s, budget.max_device_hours),
        "max_gpu_hours": (found.train_s, budget.max_gpu_hours),
    }
    for field, (spent_s, limit) in limits.items():
        if limit is not None and spent_s / 3600.0 >= limit:
            return f"budget.{field}: {spent_s / 3600.0:.2f} of {limit:g} hours"
    return ""


def with_programs(found: Search, tuned: Tuned) -> Search:
    """The search with what these programs cost."""
    return found.model_copy(
        update={
            "device_s": found.device_s + tuned.device_s,
            "measured_programs": found.measured_programs + tuned.measured_programs,
        }
    )


def with_screenings(found: Search, screened: Sequence[Screened]) -> Search:
    """The search with what these screenings cost; a candidate that waited comes again, and costs
    nothing then."""
    new = [item for item in screened if item.candidate_id not in found.screened]
    for item in new:
        if item.tuned is not None:
            found = with_programs(found, item.tuned)
    counted = (*found.screened, *(item.candidate_id for item in new))
    return found.model_copy(update={"screened": counted})


def with_trainings(found: Search, trained: Sequence[Trained]) -> Search:
    """The search with what the training of these candidates cost."""
    seconds = sum(network.train_s for network in trained)
    return found.model_copy(update={"train_s": found.train_s + seconds})


def with_comparisons(found: Search, compared: Sequence[Compared]) -> Search:
    """The search with what these comparisons cost."""
    seconds = sum(item.device_s for item in compared)
    return found.model_copy(update={"device_s": found.device_s + seconds})
