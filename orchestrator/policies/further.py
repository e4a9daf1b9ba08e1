"""A cut that was lost narrowly: its training goes on, rather than that it is thrown away.

Near the floor most of what a cut costs is won back by training, and a validation split of a few
thousand images tells a cut that fails by little from one that holds only by chance.
"""

from __future__ import annotations

from orchestrator.policies.base import View
from orchestrator.policies.candidates import candidate_of
from orchestrator.policies.gates import least_accuracy
from orchestrator.policies.judge import ACCURACY_GRAIN
from schemas.work import Candidate

NARROWLY = 0.01
"""Of accuracy: what the first further training is hoped to gain at most."""
MOST_TIMES = 3
_SUFFIX = ", trained further"


def trained_further(view: View, step_ratio: float) -> Candidate | None:
    """The most accurate of the lost cuts of the current network again, from where it got to.

    ``step_ratio``: of the current network's accuracy, what a step has to keep besides the floor. As
    long as what is missing is no more than the last such training gained, or than a validation
    split tells, and at most ``MOST_TIMES``. None for one that was refused for its latency.
    """
    found = view.search
    lost = [(item, view.lost[item.fine_tune_key]) for item in found.lost_cuts if item.fine_tune_key]
    if not lost:
        return None
    best, network = max(lost, key=lambda pair: pair[1].val_accuracy)
    tries = [other.val_accuracy for item, other in lost if item.structure == best.structure]
    times = len(tries) - 1
    hoped = max(tries[-1] - max(tries[:-1]), ACCURACY_GRAIN) if times else NARROWLY
    least = least_accuracy(found.current.val_accuracy, step_ratio, found.floor)
    missing = least - network.val_accuracy
    if missing > hoped or times == MOST_TIMES:
        return None
    candidate = candidate_of(
        "",
        f"{best.task_name.removesuffix(_SUFFIX)}{_SUFFIX}",
        found.current,
        view.prepared.groups,
        {group: best.structure.widths[group] for group in best.groups},
        long_training=True,
        trained_from=network,
        trained_further=times + 1,
    )
    return None if candidate.candidate_id in view.tried else candidate
