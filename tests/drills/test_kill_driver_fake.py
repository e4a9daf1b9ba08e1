"""The driver killed at every transition and at random instants decides as if undisturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.states import ALLOWED

HERE = Path(__file__).parent
pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    paths = [str(HERE.parent.parent), str(HERE.parent)]
    found = subprocess.run(
        [sys.executable, str(HERE / "kill_driver_fake.py"), str(tmp_path_factory.mktemp("kills"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    answers: dict[str, Any] = json.loads(found.stdout)
    return answers


def undisturbed(results: dict[str, Any], name: str) -> dict[str, Any]:
    kind = name.partition("-")[0]
    calm: dict[str, Any] = results["wide-calm" if kind == "random" else f"{kind}-calm"]
    return calm


def test_every_declared_transition_is_visited_and_no_other(results: dict[str, Any]) -> None:
    killed = [found for name, found in results.items() if name.endswith("-killed")]
    visited = {tuple(pair) for found in killed for pair in found["visited"]}
    assert visited == ALLOWED


def test_it_was_killed_at_every_event(results: dict[str, Any]) -> None:
    for name, found in results.items():
        if name.endswith("-killed"):
            assert found["kills"] >= len(found["events"]), name
    at_random = [found for name, found in results.items() if name.startswith("random-")]
    assert len(at_random) == 10
    assert sum(found["kills"] for found in at_random) >= 6


def test_the_decisions_are_those_of_an_undisturbed_run(results: dict[str, Any]) -> None:
    for name, found in results.items():
        assert found["state"] == "done", name
        assert found["decisions"] == undisturbed(results, name)["decisions"], name


def test_no_finished_work_is_executed_again(results: dict[str, Any]) -> None:
    for name, found in results.items():
        assert found["twice"] == [], name


def test_the_event_file_is_complete(results: dict[str, Any]) -> None:
    for name, found in results.items():
        assert found["lines"] == found["events"], name
