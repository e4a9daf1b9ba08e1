"""Training is deterministic, keeps its best epoch, gives cores up, and ends in bounded time."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from schemas.config import DataConfig, ModelConfig, TrainConfig
from schemas.progress import ProgressEvent
from workers.errors import TrainingDiverged, TrainingTimedOut, UserError
from workers.training.data import load_splits
from workers.training.images import Splits, TensorImages
from workers.training.metrics import accuracy_of_logits, evaluate
from workers.training.networks import build_model
from workers.training.train import train

ROOT = Path(__file__).resolve().parents[2]
TINY = ModelConfig(arguments={"stem": 4, "widths": [4, 8], "blocks": 1})
RECIPE = TrainConfig(epochs=2, batch_size=64, learning_rate=0.1)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(DataConfig(image_size=8), seed=0)


def _network(seed: int = 0) -> nn.Module:
    return build_model(TINY, 10, 1, image_size=8, seed=seed)


def test_the_same_seed_gives_the_same_bits(splits: Splits) -> None:
    networks = [_network() for _ in range(3)]
    outcomes = [
        train(network, splits, RECIPE, seed, threads=1)
        for network, seed in zip(networks, (7, 7, 8), strict=True)
    ]
    first, again, other = (network.state_dict() for network in networks)
    assert outcomes[0].history == outcomes[1].history
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_training_leaves_torch_as_it_was(splits: Splits) -> None:
    torch.manual_seed(5)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    network = _network().eval()
    train(network, splits, RECIPE.model_copy(update={"epochs": 1}), 0, threads=1)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not any(module.training for module in network.modules())
    assert network.conv1.weight.is_contiguous()


def test_the_best_validation_epoch_is_kept(splits: Splits) -> None:
    network = _network()
    outcome = train(network, splits, RECIPE.model_copy(update={"epochs": 4}), 0, threads=1)
    accuracies = [epoch.val_accuracy for epoch in outcome.history]
    assert len(accuracies) == 5 and outcome.epochs == 4
    assert outcome.val_accuracy == max(accuracies)
    assert accuracies[outcome.best_epoch] == max(accuracies)
    assert evaluate(network, splits.validation, ["top1"], threads=1) == [outcome.val_accuracy]


def test_a_harmful_fine_tuning_gives_the_network_back(splits: Splits) -> None:
    network = _network()
    before = train(network, splits, RECIPE, 0, threads=1).val_accuracy
    harmful = RECIPE.model_copy(update={"epochs": 1, "learning_rate": 50.0, "schedule": "constant"})
    outcome = train(network, splits, harmful, 0, threads=1)
    assert outcome.best_epoch == 0 and outcome.val_accuracy == before
    assert evaluate(network, splits.validation, ["top1"], threads=1) == [before]


def test_zero_epochs_only_measure(splits: Splits) -> None:
    network = _network()
    weights = network.conv1.weight.clone()
    outcome = train(network, splits, RECIPE.model_copy(update={"epochs": 0}), 0, threads=1)
    assert torch.equal(network.conv1.weight, weights) and len(outcome.history) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_every_optimizer_and_schedule_trains(splits: Splits, optimizer: str, schedule: str) -> None:
    rate = 0.1 if optimizer == "sgd" else 0.01
    changes = {"optimizer": optimizer, "schedule": schedule, "learning_rate": rate}
    outcome = train(_network(), splits, RECIPE.model_copy(update=changes), 0, threads=1)
    losses = [epoch.loss for epoch in outcome.history[1:]]
    assert losses[-1] < losses[0]


def test_the_cores_are_given_up_between_batches(splits: Splits) -> None:
    log: list[str] = []

    @contextmanager
    def cores() -> Iterator[None]:
        log.append("take")
        yield
        log.append("give")

    train(_network(), splits, RECIPE.model_copy(update={"epochs": 1}), 0, yield_cores=cores)
    training, validation = 17, 3
    assert log == ["take", "give"] * (training + 2 * validation)


def test_progress_tells_every_epoch(splits: Splits) -> None:
    events: list[ProgressEvent] = []
    train(_network(), splits, RECIPE, 0, progress=events.append, threads=1)
    ends = [event for event in events if event.batch == event.batches]
    assert [event.epoch for event in ends][-1] == 2 and ends[-1].epochs == 2
    assert all(0.0 <= event.val_accuracy <= 1.0 for event in ends)


def test_training_stops_when_its_time_is_up(splits: Splits) -> None:
    with pytest.raises(TrainingTimedOut, match=r"^train\.timeout_s: "):
        train(_network(), splits, RECIPE.model_copy(update={"timeout_s": 1e-9}), 0, threads=1)


def test_a_diverging_training_says_so(splits: Splits) -> None:
    steep = RECIPE.model_copy(update={"learning_rate": 1e30, "schedule": "constant"})
    with pytest.raises(TrainingDiverged, match=r"^train\.learning_rate: the loss .*lower it"):
        train(_network(), splits, steep, 0, threads=1)


def test_a_training_that_may_diverge_keeps_its_best_epoch(splits: Splits) -> None:
    steep = RECIPE.model_copy(update={"learning_rate": 1e30, "schedule": "constant"})
    network = _network()
    before = copy.deepcopy(network.state_dict())
    outcome = train(network, splits, steep, 0, threads=1, may_diverge=True)
    assert "the loss became" in outcome.diverged and outcome.best_epoch == 0
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert train(_network(), splits, RECIPE, 0, threads=1, may_diverge=True).diverged == ""


def test_an_epoch_whose_last_step_breaks_the_weights_is_not_the_best(
    splits: Splits,
) -> None:
    """Outputs that are no numbers name the first class, and here that is always right."""
    images = splits.validation.images
    firsts = TensorImages(images, torch.zeros(len(images), dtype=torch.int64))
    lucky = replace(splits, validation=firsts)
    update = {
        "learning_rate": 1e38,
        "schedule": "constant",
        "epochs": 1,
        "batch_size": len(splits.train),
    }
    network = _network()
    outcome = train(network, lucky, RECIPE.model_copy(update=update), 0, threads=1)
    assert [epoch.val_accuracy > 0.0 for epoch in outcome.history] == [True, False]
    assert outcome.best_epoch == 0


def test_a_loss_that_no_learning_rate_mends_names_its_cause(splits: Splits) -> None:
    network = _network()
    with torch.no_grad():
        network.fc.bias.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"^model\.name: .*before training \(fc\.bias\)"):
        train(network, splits, RECIPE, 0, threads=1)
    images = splits.train.images.clone()
    images[:, :, 0, 0] = float("inf")
    broken = replace(splits, train=TensorImages(images, splits.train.labels))
    with pytest.raises(TrainingDiverged, match=r"^data\.name: .*images of its batch 1 are"):
        train(_network(), broken, RECIPE, 0, threads=1)
    undefined = nn.Sequential(_network(), _LogOfMinusOne())
    with pytest.raises(TrainingDiverged, match=r"^model\.name: .*correct the network's forward"):
        train(undefined, splits, RECIPE, 0, threads=1)


def test_of_a_training_that_may_diverge_only_the_images_end_the_run(splits: Splits) -> None:
    undefined = nn.Sequential(_network(), _LogOfMinusOne())
    outcome = train(undefined, splits, RECIPE, 0, threads=1, may_diverge=True)
    assert "before any of them changed" in outcome.diverged and outcome.best_epoch == 0
    images = torch.full_like(splits.train.images, float("inf"))
    broken = replace(splits, train=TensorImages(images, splits.train.labels))
    with pytest.raises(TrainingDiverged, match=r"^data\.name: "):
        train(_network(), broken, RECIPE, 0, threads=1, may_diverge=True)


class _LogOfMinusOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.log(-torch.ones_like(x))


def test_odd_widths_train_with_two_threads_beside_even_ones() -> None:
    """In a process of its own: what this guards against ends the whole process."""
    code = (
        "from schemas.config import DataConfig, ModelConfig, TrainConfig\n"
        "from workers.training.data import load_splits\n"
        "from workers.training.networks import build_model\n"
        "from workers.training.train import train\n"
        "splits = load_splits(DataConfig(), 0)\n"
        "for stem in (16, 12):\n"
        "    widths = {'stem': stem, 'widths': [stem, 2 * stem]}\n"
        "    network = build_model(ModelConfig(arguments=widths), 10, 1)\n"
        "    train(network, splits, TrainConfig(epochs=1, batch_size=32), 0, threads=2)\n"
    )
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_metric_is_top1_or_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    assert accuracy_of_logits(logits, labels) == 2 / 3
    (tmp_path / "my_metric.py").write_text(
        "def half(logits, labels):\n    return 0.5\ndef wrong(logits, labels):\n    return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    assert accuracy_of_logits(logits, labels, "my_metric:half") == 0.5
    for name in ("my_metric:wrong", "my_metric:absent"):
        with pytest.raises(UserError, match=r"^metric: "):
            accuracy_of_logits(logits, labels, name)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TrainingDiverged("train.learning_rate", "bad", "lower it")))
    assert isinstance(error, TrainingDiverged) and error.hint == "lower it"
    assert str(error) == "train.learning_rate: bad; lower it"
