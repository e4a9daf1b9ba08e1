"""Whether images that nobody chose by bear out the accuracy floor."""

from __future__ import annotations

import pytest
import synthetic_record

from orchestrator import results
from orchestrator.held_out import doubt_of, excess_test_loss
from orchestrator.report.page import render
from orchestrator.summary import summarise
from schemas.record import RunRecord
from schemas.work import Exported


@pytest.mark.parametrize(
    ("final", "images", "excess"),
    [
        (0.898, 2000, 0.0155),  # 1.7 deviations beyond the point allowed
        (0.898, 500, None),
        (0.910, 2000, None),
        (0.930, 2000, None),
    ],
)
def test_what_chance_may_explain_is_no_excess(
    final: float, images: int, excess: float | None
) -> None:
    found = excess_test_loss(0.9235, final, images, allowed=0.01)
    assert found == (None if excess is None else pytest.approx(excess))


def record(test: float, **changes: object) -> RunRecord:
    """A finished run whose final network has this accuracy on 2,000 test images."""
    whole = synthetic_record.record()
    *work, export = whole.work
    assert isinstance(export.outcome, Exported)
    final = export.outcome.final.model_copy(update={"test_accuracy": test})
    outcome = export.outcome.model_copy(update={"final": final, "test_images": 2000})
    work.append(export.model_copy(update={"outcome": outcome}))
    config = whole.config.model_copy(update=changes)
    return whole.model_copy(update={"work": tuple(work), "config": config})


def test_an_excess_is_told_on_the_console_and_on_the_page() -> None:
    found = summarise(record(0.9))
    (target,) = found.targets
    doubt = doubt_of(target)
    assert doubt.startswith("on the 2,000 test images it loses 8.06 points of accuracy where")
    assert f"chose among {target.trainings} trained networks" in doubt
    assert f"{target.target}: {doubt}" in list(results.lines(found))
    assert "On the 2,000 test images it loses 8.06 points" in render(record(0.9), found)


def test_a_floor_that_holds_is_not_doubted() -> None:
    (target,) = summarise(record(0.9778)).targets
    assert target.excess_test_loss is None and doubt_of(target) == ""


def test_a_metric_of_ones_own_is_no_share_of_images() -> None:
    (target,) = summarise(record(0.5, metric="os.path:join")).targets
    assert target.excess_test_loss is None and target.test_images == 2000
