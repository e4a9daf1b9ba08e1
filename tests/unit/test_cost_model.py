"""The cost model: what it packs, what it begins with, and when it predicts at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.table import Sample
from workers.tuning.cost_model import RecordModel, packed, unpacked

COLUMNS = 164


def features(speed: float) -> np.ndarray[Any, Any]:
    """Two stores of a program whose speed shows in one column."""
    rows = np.zeros((2, COLUMNS), dtype="float32")
    rows[:, 3] = speed
    return rows


def samples(task_id: str, count: int) -> list[Sample]:
    """Programs of one task, each as fast as its features say."""
    return [
        Sample(
            task_id=task_id,
            program_id=f"{task_id}-{number}",
            device_model="m",
            target="t",
            latency_ms=100.0 / number,
            features=packed(features(number)),
        )
        for number in range(1, count + 1)
    ]


def test_features_are_packed_without_loss_and_small() -> None:
    rows = np.zeros((9, COLUMNS), dtype="float32")
    rows[:, ::7] = np.random.default_rng(0).random(rows[:, ::7].shape, dtype="float32")
    assert np.array_equal(unpacked(packed(rows), COLUMNS), rows)
    assert len(packed(rows)) < rows.nbytes / 4
    assert unpacked(packed(features(1.0)), COLUMNS).dtype == np.float32


def test_without_samples_it_begins_at_random() -> None:
    model = RecordModel().fitted({}, 0)
    assert model.booster is None


@pytest.mark.parametrize(("count", "predicts"), [(15, False), (16, True)])
def test_samples_of_other_tasks_count_as_records(count: int, predicts: bool) -> None:
    model = RecordModel()
    model.begin_with(samples("other", count))
    assert (model.fitted({}, 0).booster is not None) is predicts


def test_it_ranks_programs_of_a_task_it_has_never_seen() -> None:
    model = RecordModel()
    model.begin_with([*samples("one", 40), *samples("two", 40)])
    predicted = model.fitted({"own": {}}, 0)._predict([features(n) for n in (3, 12, 25, 39)])
    assert list(np.argsort(predicted)) == [0, 1, 2, 3]


def test_each_task_is_a_group_of_its_own() -> None:
    model = RecordModel()
    model.begin_with([*samples("one", 20), *samples("two", 30)])
    data = model.fitted({}, 0).data
    assert {name: len(group.features) for name, group in data.items()} == {"one": 20, "two": 30}
    assert data["two"].min_cost == pytest.approx(100.0 / 30)


def test_of_a_task_with_records_those_alone_count() -> None:
    model = RecordModel()
    model.begin_with([*samples("one", 20), *samples("own", 30)])
    model._features["program"] = features(1.0)
    data = model.fitted({"own": {"program": 5.0}}, 0).data
    assert {name: len(group.features) for name, group in data.items()} == {"one": 20, "own": 1}


def test_the_same_samples_make_the_same_model() -> None:
    seen = []
    for _ in range(2):
        model = RecordModel()
        model.begin_with([*samples("one", 40), *samples("two", 40)])
        seen.append(model.fitted({}, 7)._predict([features(n) for n in range(40)]))
    assert np.array_equal(*seen)
