"""The whole of a run (Ray, training, tuning) killed at each transition and at random instants.

The device is a recording made by a run on a real one, so that what is measured is the same each
time; everything else is real. Decisions and results must be those of an undisturbed run, and no
process may outlive the driver by more than ten seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.reaper import marked
from orchestrator.states import ALLOWED
from orchestrator.store.reader import read_run

pytestmark = [pytest.mark.drill, pytest.mark.slow]

_RUN_LIMIT_S = 600.0
_GONE_LIMIT_S = 10.0
_RANDOM_KILLS = 3
_MARK = "CPRUNE_DRILL_MARK"


def configuration(folder: Path, device: str, output: str) -> dict[str, Any]:
    """A run of a minute or two: a tiny network, few trials, gates wide open."""
    return {
        "run": "drill",
        "output": str(folder / output),
        "model": {"name": "small_resnet", "arguments": {"stem": 8, "widths": [16]}},
        "data": {"name": "digits", "image_size": 16},
        "train": {"epochs": 2, "batch_size": 128},
        "fine_tune": {"short_epochs": 1, "long_epochs": 1},
        "prune": {
            "max_accuracy_drop": 0.95,
            "step_accuracy_ratio": 0.01,
            "step_latency_ratio": 1.0,
            "confidence": 0.55,
            "tasks_per_round": 1,
            "widths_per_task": 1,
            "fine_tuned_per_round": 1,
        },
        "tune": {
            "trials_per_task": 2,
            "finalists": 1,
            "retune_trials_per_task": 1,
            "final_trials_per_task": 2,
            "round_size": 2,
            "population_size": 16,
            "transplant_variants": 2,
        },
        "measure": {"model_repeats": 4, "model_max_repeats": 4, "model_min_repeat_ms": 5},
        "budget": {"max_rounds": 1},
        "records": {"share": False},  # each run finds out everything by itself
        "targets": [
            {"name": "host", "device": device, "recording": str(folder / "recording.jsonl")}
        ],
    }


@dataclass
class Driver:
    """``cprune run`` as a process of its own, and everything it starts, known by a mark."""

    config: Path
    folder: Path
    mark: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def run_dir(self) -> Path:
        return self.folder / "drill"

    def start(self) -> None:
        self.mark = uuid.uuid4().hex
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "run", str(self.config)],
                env={**os.environ, _MARK: self.mark, "RAY_AUTH_MODE": "disabled"},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def events(self) -> list[dict[str, Any]]:
        """The transitions so far, this start's and the earlier ones'."""
        path = self.run_dir / "events.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def finish(self) -> None:
        """Let it run to its end."""
        assert self.process is not None
        code = self.process.wait(timeout=_RUN_LIMIT_S)
        assert code == 0, (self.folder / "log.txt").read_text()[-3000:]

    def wait_for(self, condition: Any) -> bool:
        """Whether ``condition()`` became true before the run ended."""
        assert self.process is not None
        deadline = time.monotonic() + _RUN_LIMIT_S
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < deadline, "the run neither moves nor ends"
            time.sleep(0.01)
        assert self.process.returncode == 0, (self.folder / "log.txt").read_text()[-3000:]
        return False

    def kill(self) -> None:
        """SIGKILL the driver; whatever it started must be gone in ten seconds."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        """Whatever the driver started is gone in ten seconds."""
        deadline = time.monotonic() + _GONE_LIMIT_S
        while left := marked(self.mark, _MARK):
            assert time.monotonic() < deadline, [process.cmdline()[:3] for process in left]
            time.sleep(0.1)


def decisions(run_dir: Path) -> dict[str, Any]:
    """All that a run decided and found, without times."""
    record = read_run(run_dir)
    target = record.targets[0]
    return {
        "state": record.state,
        "steps": [
            (step.candidate.candidate_id, step.candidate.widths_after, step.accepted, step.reason)
            for step in target.steps
        ],
        "final": target.final and (target.final.structure, target.final.weights),
        "stopped_by": target.stopped_by,
        "outcomes": sorted((work.work.kind, work.work.key) for work in record.work),
        "exported": [
            work.outcome.speedup_ratios for work in record.work if work.outcome.kind == "exported"
        ],
    }


def prepared(folder: Path, device: str, output: str) -> Driver:
    config = folder / f"{output}.yaml"
    config.write_text(yaml.safe_dump(configuration(folder, device, output)))
    return Driver(config, folder / output)


@dataclass
class Calm:
    folder: Path
    events: list[dict[str, Any]]
    decisions: dict[str, Any]
    seconds: float


def undisturbed_run(where: Path) -> Calm:
    """A run on a real device, recorded, and an undisturbed one on the recording."""
    for attempt in range(3):  # on a busy machine no step may be found to be faster
        folder = where / f"drill{attempt}"
        folder.mkdir()
        recorded = prepared(folder, "local", "recorded")
        recorded.start()
        recorded.finish()
        if any(accepted for _, _, accepted, _ in decisions(recorded.run_dir)["steps"]):
            break
    undisturbed = prepared(folder, "replay", "calm")
    began = time.monotonic()
    undisturbed.start()
    undisturbed.finish()
    seconds = time.monotonic() - began
    found = decisions(undisturbed.run_dir)
    assert found["state"] == "done"
    assert any(accepted for _, _, accepted, _ in found["steps"])
    assert found["steps"] == decisions(recorded.run_dir)["steps"]
    return Calm(folder, undisturbed.events(), found, seconds)


def kill_after_each_transition(calm: Calm) -> None:
    """It decides the same."""
    driver = prepared(calm.folder, "replay", "each")
    kills = 0
    for count in range(1, len(calm.events)):
        driver.start()
        if driver.wait_for(lambda count=count: len(driver.events()) >= count):
            driver.kill()
            kills += 1
    driver.start()
    driver.finish()
    assert kills >= len(calm.events) - 2
    assert decisions(driver.run_dir) == calm.decisions
    assert [event["kind"] for event in driver.events()] == [e["kind"] for e in calm.events]


def interrupt_and_then_kill_at_random_instants(calm: Calm) -> None:
    """It decides the same."""
    instants = random.Random(7)
    kills, number = 0, 0
    driver = prepared(calm.folder, "replay", "random0")
    driver.start()
    assert driver.wait_for(lambda: len(driver.events()) >= 2)
    assert driver.process is not None
    driver.process.send_signal(signal.SIGTERM)  # drains
    assert driver.process.wait(timeout=120) == 130
    assert "SIGTERM received" not in (driver.folder / "log.txt").read_text()  # Ray's stack
    driver.nothing_is_left()
    while kills < _RANDOM_KILLS:
        began = time.monotonic()
        wanted_s = instants.uniform(1.0, 0.6 * calm.seconds)
        driver.start()
        if driver.wait_for(lambda at=began + wanted_s: time.monotonic() >= at):
            driver.kill()
            kills += 1
            continue
        assert decisions(driver.run_dir) == calm.decisions
        number += 1
        driver = prepared(calm.folder, "replay", f"random{number}")
    driver.start()
    driver.finish()
    assert decisions(driver.run_dir) == calm.decisions


def test_killed_or_interrupted_a_run_decides_the_same(tmp_path: Path) -> None:
    """One test, as its parts share a run of minutes and tests go to several processes."""
    calm = undisturbed_run(tmp_path)
    states = [event["kind"] for event in calm.events]
    assert set(itertools.pairwise(states)) <= ALLOWED
    assert states[-1] == "done"
    kill_after_each_transition(calm)
    interrupt_and_then_kill_at_random_instants(calm)
