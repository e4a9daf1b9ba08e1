"""The drawn data set is hard enough that pruning costs accuracy, and easy enough to be learnt."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from orchestrator.compare.methods import quick
from orchestrator.configuration import load_config
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to, uniform_widths
from workers.training.data import load_splits
from workers.training.networks import build_model
from workers.training.train import train

SEEDS = (0, 1, 2)
CONFIG = quick(load_config(Path(__file__).parents[2] / "examples" / "compare.yaml"))
EPOCHS = 10
"""Fewer than the comparison's, whose three seeds take half an hour with one thread. With 8 half of
the widths cost less: fine-tuning finishes the training."""
FINE_TUNING = CONFIG.train.model_copy(
    update={
        "epochs": CONFIG.fine_tune.long_epochs,
        "learning_rate": CONFIG.fine_tune.long_learning_rate,
        "schedule": CONFIG.fine_tune.schedule,
    }
)


def accuracies(seed: int) -> tuple[float, float, float]:
    """Validation accuracy of the quick comparison's dense network after ``EPOCHS``, of half of its
    widths, and of a quarter, fine-tuned."""
    splits = load_splits(CONFIG.data, seed)
    size = splits.preprocessing.size
    network = build_model(CONFIG.model, 10, 3, image_size=size, seed=seed)
    recipe = CONFIG.train.model_copy(update={"epochs": EPOCHS})
    dense = train(network, splits, recipe, seed, threads=1).val_accuracy
    image = torch.zeros(1, 3, size, size)
    groups = channel_groups(network, image)
    half, quarter = (
        train(
            prune_to(network, image, groups, uniform_widths(groups, fraction)),
            splits,
            FINE_TUNING,
            seed,
            threads=1,
        ).val_accuracy
        for fraction in (0.5, 0.25)
    )
    return dense, half, quarter


@pytest.mark.slow
def test_narrower_networks_are_less_accurate_on_drawn_images() -> None:
    dense, half, quarter = map(statistics.mean, zip(*map(accuracies, SEEDS), strict=True))
    assert 0.85 <= dense <= 0.97
    assert dense - half >= 0.01
    assert dense - quarter >= 0.03
