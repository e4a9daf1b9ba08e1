"""A cut that was lost narrowly: its training goes on, rather than that it is thrown away.

Near the floor most of what a cut costs is won back by training, and a validation split of a few
thousand images tells a cut that fails by little from one that holds only by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policies.base import View
from orchestrator.policies.candidates import candidate_of
from orchestrator.policies.gates import least_accuracy
from orchestrator.states import Decision
from schemas.network import Trained
from schemas.work import Candidate

NARROWLY = 0.004
"""Of accuracy: what the first further training is hoped to gain at most. Measured:
benchmarks/EXPERIMENTS.md, what becomes of lost cuts."""
MOST_TIMES = 3
_SUFFIX = ", trained further"


def trained_further(view: View, step_ratio: float) -> Candidate | None:
    """The most accurate of the lost cuts of the current network that are worth it, again, from
    where it got to.

    ``step_ratio``: of the current network's accuracy, what a step has to keep besides the floor. A
    cut is worth it as long as what is missing is no more than the last such training gained, and at
    most ``MOST_TIMES``. None for one that was refused for its latency.
    """
    found = view.search
    least = least_accuracy(found.current.val_accuracy, step_ratio, found.floor)
    cuts: dict[str, list[tuple[Decision, Trained]]] = {}
    for item in found.lost_cuts:
        if item.fine_tune_key:
            tried = cuts.setdefault(item.structure.model_dump_json(), [])
            tried.append((item, view.lost[item.fine_tune_key]))
    worth_it = [tried for tried in cuts.values() if least - _best(tried) <= _hoped(tried)]
    for tried in sorted(worth_it, key=_best, reverse=True):
        decision, network = max(tried, key=lambda pair: pair[1].val_accuracy)
        candidate = candidate_of(
            decision.task_id,
            f"{decision.task_name.removesuffix(_SUFFIX)}{_SUFFIX}",
            found.current,
            view.groups,
            {group: decision.structure.widths[group] for group in decision.groups},
            long_training=True,
            trained_from=network,
            trained_further=len(tried),
        ).model_copy(update={"kept_share": decision.kept_share})
        if candidate.candidate_id not in view.tried:
            return candidate
    return None


def _best(tried: Sequence[tuple[Decision, Trained]]) -> float:
    return max(network.val_accuracy for _, network in tried)


def _hoped(tried: Sequence[tuple[Decision, Trained]]) -> float:
    """What one more training of a cut may gain; nothing once it had its share of them."""
    if len(tried) > MOST_TIMES:
        return 0.0
    reached = [network.val_accuracy for _, network in tried]
    return max(0.0, reached[-1] - max(reached[:-1])) if len(reached) > 1 else NARROWLY
