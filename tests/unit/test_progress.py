"""The trainings in flight, as their workers tell of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.progress import FRESH_S, trainings_in_flight

Tell = Callable[..., Path]


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    """Writes what a training in epoch 2 of 3 tells, with changes; as old as ``age_s``."""
    (tmp_path / "progress").mkdir()

    def write(name: str = "a", age_s: float = 0.0, **changes: Any) -> Path:
        path = tmp_path / "progress" / f"{name}.json"
        told = {"what": "fine_tune", "epoch": 2, "epochs": 3, "batch": 5, "batches": 9}
        told |= {"loss": 0.5, "val_accuracy": 0.25, "elapsed_s": 1.0, **changes}
        path.write_text(json.dumps(told))
        before = path.stat().st_mtime - age_s
        os.utime(path, (before, before))
        return path

    return write


def test_a_run_without_trainings_has_none_in_flight(tmp_path: Path) -> None:
    assert not list(trainings_in_flight(tmp_path))


def test_those_in_flight_are_told_with_names_people_know(tell: Tell, tmp_path: Path) -> None:
    tell("a")
    tell("b", what="prepare", epoch=1, val_accuracy=None)
    tuning, dense = trainings_in_flight(tmp_path)
    assert (tuning.name, tuning.told.epoch, tuning.accuracy) == (
        "fine-tuning",
        2,
        "validation 25.00%",
    )
    assert (dense.name, dense.told.epoch, dense.accuracy) == ("dense network", 1, "")


def test_one_at_its_last_batch_is_over(tell: Tell, tmp_path: Path) -> None:
    tell(epoch=3, batch=9)
    assert not list(trainings_in_flight(tmp_path))


def test_one_that_has_long_been_silent_is_over(tell: Tell, tmp_path: Path) -> None:
    tell(age_s=2 * FRESH_S)
    assert not list(trainings_in_flight(tmp_path))


def test_what_an_earlier_start_told_does_not_count(tell: Tell, tmp_path: Path) -> None:
    written = tell().stat().st_mtime
    assert not list(trainings_in_flight(tmp_path, since=written + 1.0))


def test_a_file_that_is_being_written_is_passed_over(tell: Tell, tmp_path: Path) -> None:
    tell("a").write_text("{")
    tell("b")
    assert [training.key for training in trainings_in_flight(tmp_path)] == ["b.json"]
