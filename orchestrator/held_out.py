"""Whether images that nobody chose by bear out the accuracy floor.

The floor is held on validation images, and by those many trained candidates are chosen: the one
that is kept has been lucky with them. The test split is read once, at the end.
"""

from __future__ import annotations

import math

from orchestrator.wording import count
from schemas.summary import TargetSummary

_DEVIATIONS = 1.645
"""One-sided, 95 %."""


def excess_test_loss(dense: float, final: float, images: int, allowed: float) -> float | None:
    """Accuracy lost on the test split beyond ``allowed``; None where that may be chance.

    Accuracies are shares of ``images``. Each is taken for a binomial share by itself; two networks
    that err on the same images differ less by chance, so this speaks up late rather than early.
    """
    excess = dense - final - allowed
    deviation = math.sqrt((dense * (1.0 - dense) + final * (1.0 - final)) / images)
    return excess if excess > _DEVIATIONS * deviation else None


def doubt_of(target: TargetSummary) -> str:
    """What an excess means and what helps, for people; empty where there is none."""
    excess, base = target.excess_test_loss, target.baseline
    if excess is None or base is None or target.final is None or target.test_images is None:
        return ""
    allowed = max(0.0, base.val_accuracy - (target.accuracy_floor or 0.0))
    trained = count(target.trainings, "trained network")
    return (
        f"on the {target.test_images:,} test images it loses {100 * (allowed + excess):.2f} points "
        f"of accuracy where the floor allows {100 * allowed:.2f}, more than chance explains: the "
        f"validation images chose among {trained}; with "
        "more of them the floor holds better"
    )
