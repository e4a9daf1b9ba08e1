"""A whole run whose device is behind a tracker, as phones are: it has nothing to do while the
candidates are trained, and screens those of the next round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fleet_world import KEY, Rack

from orchestrator.store.reader import read_run
from schemas.record import WorkRecord
from schemas.work import FineTuneWork, ScreenWork

RUN_LIMIT_S = 400.0


def configuration(rack: Rack, output: Path) -> dict[str, object]:
    """Two rounds on a tiny network; no candidate keeps the accuracy."""
    return {
        "run": "phones",
        "output": str(output),
        "model": {"name": "small_resnet", "arguments": {"stem": 8, "widths": [8, 16]}},
        "data": {"name": "digits", "image_size": 16},
        "train": {"epochs": 4},
        "fine_tune": {"short_epochs": 1, "long_epochs": 2, "short_learning_rate": 1e-9},
        "prune": {
            "max_accuracy_drop": 0.0,
            "step_latency_ratio": 1.0,
            "tasks_per_round": 2,
            "widths_per_task": 1,
            "fine_tuned_per_round": 2,
        },
        "tune": {
            "trials_per_task": 2,
            "finalists": 1,
            "retune_trials_per_task": 0,
            "final_trials_per_task": 2,
            "round_size": 2,
            "population_size": 8,
            "transplant_variants": 1,
        },
        "measure": {"model_repeats": 4, "model_max_repeats": 4, "model_min_repeat_ms": 5},
        "budget": {"max_rounds": 2},
        "records": {"share": False},
        "targets": [
            {
                "name": "phone",
                "device": "tracker",
                "tracker_host": rack.tracker.host,
                "tracker_port": rack.tracker.port,
                "key": KEY,
                "threads": 1,
            }
        ],
    }


def overlap(one: WorkRecord, other: WorkRecord) -> bool:
    return (
        one.finished_at - one.seconds < other.finished_at
        and other.finished_at - other.seconds < one.finished_at
    )


@pytest.mark.slow
def test_the_next_round_is_screened_while_candidates_are_trained(tmp_path: Path) -> None:
    config = tmp_path / "phones.yaml"
    with Rack() as rack:
        rack.add()
        config.write_text(yaml.safe_dump(configuration(rack, tmp_path)))
        ended = subprocess.run(
            [sys.executable, "-m", "orchestrator", "run", str(config)],
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    record = read_run(tmp_path / "phones")
    assert record.state == "done" and record.targets[0].steps
    trainings = [item for item in record.work if isinstance(item.work, FineTuneWork)]
    screenings = [item for item in record.work if isinstance(item.work, ScreenWork)]
    beside = [s for s in screenings if any(overlap(s, t) for t in trainings)]
    assert trainings and beside
    assert len({item.work.key for item in screenings}) == len(screenings)
