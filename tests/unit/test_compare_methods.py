"""The configurations of the methods that are compared."""

from __future__ import annotations

from pathlib import Path

import fake_world
import pytest
from driver_world import go

from orchestrator.compare.comparison import spent_in
from orchestrator.compare.methods import (
    BASELINES,
    OURS,
    PAPER_TRIALS,
    Spent,
    merged,
    method_config,
    quick,
    with_trials,
)
from orchestrator.configuration import load_config

ROOT = Path(__file__).parents[2]


def test_a_methods_settings_replace_those_of_the_configuration(tmp_path: Path) -> None:
    config = fake_world.config(budget={"max_rounds": 2, "max_hours": 1.0})
    original = method_config(config, "cprune-original", tmp_path, original_candidates=5)
    assert (original.prune.step_accuracy_ratio, original.prune.step_latency_ratio) == (0.995, 0.99)
    assert original.prune.min_width_fraction == 0.2
    assert original.budget.max_rounds == 5 and original.budget.max_hours > 1000
    spent = Spent(most_trials=50)
    tuned = {name: method_config(config, name, tmp_path, ours=spent).tune for name in BASELINES}
    assert {tune.final_trials_per_task for tune in tuned.values()} == {8}
    dense = method_config(config, "dense", tmp_path, ours=spent).tune
    assert dense.final_trials_per_task == 50
    netadapt = method_config(config, "netadapt", tmp_path, ours=Spent())
    assert netadapt.budget.max_gpu_hours, "ours may have trained nothing"
    ours = method_config(config, OURS, tmp_path)
    assert ours.budget.max_rounds == 2 and ours.prune == config.prune


def test_what_is_left_out_of_ours_is_left_out_of_its_ablations_and_of_no_other_method(
    tmp_path: Path,
) -> None:
    prune = {"max_accuracy_drop": 0.03, "without": ["blocks"], "min_width_fraction": 0.3}
    config = fake_world.config(prune=prune)
    assert method_config(config, OURS, tmp_path).prune.without == ["blocks"]
    structure = method_config(config, "without structure", tmp_path).prune
    assert structure.without == ["blocks", "structure"]
    others = [method_config(config, name, tmp_path).prune for name in BASELINES]
    assert all(prune.without == [] and prune.min_width_fraction == 0.3 for prune in others)


def test_the_quick_form_is_smaller_in_everything() -> None:
    config = fake_world.config(
        data={"name": "drawn"}, fine_tune={"short_epochs": 4, "long_epochs": 9}
    )
    small = quick(config)
    assert small.data.arguments["train"] == 4000
    assert small.fine_tune.short_epochs == 1 and small.fine_tune.long_epochs == 4
    assert small.tune.trials_per_task == 8 and small.budget.max_rounds == 20


def test_of_several_targets_the_one_that_trained_for_longest_counts(tmp_path: Path) -> None:
    """What one target trained for nobody else is no time that a baseline gets on another."""
    record = go(tmp_path, fake_world.config())
    (target,) = record.targets
    trained_s = spent_in(record).train_s
    parts = [
        target.model_copy(update={"steps": steps, "current": None, "final": None})
        for steps in (target.steps[:1], target.steps[1:])
    ]
    config = record.config.model_copy(update={"targets": record.config.targets * 2})
    shared_out = record.model_copy(update={"targets": tuple(parts), "config": config})
    assert 0.0 < spent_in(shared_out).train_s < trained_s


def test_trials_are_one_setting() -> None:
    tune = with_trials(fake_world.config(), 70).tune
    assert tune.trials_per_task == 70 and tune.min_trials_per_task == 16
    assert with_trials(fake_world.config(), 4).tune.min_trials_per_task == 4


@pytest.mark.parametrize("name", ["compare_cifar10", "compare_imagenet"])
def test_the_examples_for_other_data_have_the_trials_of_the_papers_code(name: str) -> None:
    config = load_config(ROOT / "examples" / f"{name}.yaml", environ={})
    assert with_trials(config, PAPER_TRIALS).tune.trials_per_task == config.tune.trials_per_task
    assert config.run.replace("-", "_") == name, "each has a folder of its own"
    assert not config.data.synthetic


def test_sections_are_merged_and_values_replaced() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 3}, "d": {"e": 1}}) == {
        "a": {"b": 3, "c": 2},
        "d": {"e": 1},
    }
