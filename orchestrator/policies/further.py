"""A cut that was lost narrowly: its training goes on, rather than that it is thrown away.

Near the floor most of what a cut costs is won back by training, and a validation split of a few
thousand images tells a cut that fails by little from one that holds only by chance.
"""

from __future__ import annotations

from orchestrator.policies.base import View
from orchestrator.policies.candidates import candidate_of
from orchestrator.policies.gates import least_accuracy
from schemas.work import Candidate

NARROWLY = 0.01
"""Of accuracy: what the first further training is hoped to gain at most."""


def trained_further(view: View) -> Candidate | None:
    """The most accurate of the lost cuts of the current network again, from where it got to.

    Again and again, as long as the last such training gained what is still missing.
    """
    found = view.search
    lost = [(item, view.lost[item.fine_tune_key]) for item in found.lost_cuts if item.fine_tune_key]
    if not lost:
        return None
    last, network = max(lost, key=lambda pair: pair[1].val_accuracy)
    before = [
        other.val_accuracy
        for item, other in lost
        if item.structure == last.structure and other is not network
    ]
    gained = network.val_accuracy - max(before) if before else NARROWLY
    ratio = view.config.step_accuracy_ratio
    missing = least_accuracy(found.current.val_accuracy, ratio, found.floor) - network.val_accuracy
    if missing > gained:
        return None
    candidate = candidate_of(
        "",
        f"{last.task_name.removesuffix(_SUFFIX)}{_SUFFIX}",
        found.current,
        view.prepared.groups,
        {group: last.structure.widths[group] for group in last.groups},
        long_training=True,
        trained_from=network,
    )
    return None if candidate.candidate_id in view.tried else candidate


_SUFFIX = ", trained further"
