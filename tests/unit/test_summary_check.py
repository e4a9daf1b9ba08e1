"""The continuous check of a summary refuses what is not sound."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import synthetic_record

from orchestrator.report import summary_text
from orchestrator.summary import summarise

ROOT = Path(__file__).parents[2]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("check_summary", ROOT / ".ci/check_summary.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(summary_text(summarise(synthetic_record.record())))
    for path in made["targets"][0]["artifacts"].values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    made["targets"][0].update(changes)
    return made


def test_a_sound_summary_passes(tmp_path: Path) -> None:
    assert load().problems_of(summary(tmp_path), tmp_path) == []
    (tmp_path / "summary.json").write_text(json.dumps(summary(tmp_path)))
    assert load().main([str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"speedup": 0.99}, "speed-up is 0.99"),
        ({"speedup": None}, "speed-up is None"),
        ({"simulated": True}, "simulated"),
        ({"accuracy_floor": 0.999}, "below the floor"),
        ({"final": None}, "missing"),
        ({"library_check": None}, "not checked"),
        (
            {"library_check": {"images": 1, "max_abs_difference": 1.0, "max_abs_output": 9.0}},
            "differs from torch",
        ),
        ({"artifacts": {"library": "export/host/none.so"}}, "is not at"),
        ({"artifacts": {}}, "no artefacts"),
        ({"steps": 3}, "steps"),
    ],
)
def test_an_unsound_one_does_not(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    found = load().problems_of(summary(tmp_path, **changes), tmp_path)
    assert len(found) == 1 and text in found[0]


def test_a_run_that_failed_does_not(tmp_path: Path) -> None:
    made = {**summary(tmp_path), "state": "failed", "error": "no device"}
    assert "no device" in load().problems_of(made, tmp_path)[0]
