"""The drawn data set is hard enough that pruning costs accuracy, and easy enough to be learnt."""

from __future__ import annotations

import statistics

import pytest
import torch

from schemas.config import DataConfig, ModelConfig, TrainConfig
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to, uniform_widths
from workers.training.data import load_splits
from workers.training.networks import build_model
from workers.training.train import train

SEEDS = (0, 1, 2)
SIZE = 16
DATA = DataConfig(
    name="drawn", image_size=SIZE, arguments={"train": 3000, "validation": 1000, "test": 1}
)
RECIPE = TrainConfig(epochs=8, batch_size=32, optimizer="adamw", learning_rate=0.003)
FINE_TUNING = RECIPE.model_copy(update={"epochs": 2, "learning_rate": 0.002, "schedule": "cosine"})


def accuracies(seed: int) -> tuple[float, float, float]:
    """Validation accuracy of the dense network, with half of every width, and with a quarter."""
    splits = load_splits(DATA, seed)
    config = ModelConfig(name="resnet18_cifar", arguments={"width": 16})
    network = build_model(config, 10, 3, image_size=SIZE, seed=seed)
    dense = train(network, splits, RECIPE, seed).val_accuracy
    image = torch.zeros(1, 3, SIZE, SIZE)
    groups = channel_groups(network, image)
    half, quarter = (
        train(
            prune_to(network, image, groups, uniform_widths(groups, fraction)),
            splits,
            FINE_TUNING,
            seed,
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
