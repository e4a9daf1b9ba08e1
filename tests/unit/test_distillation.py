"""A network learns from a teacher's outputs, as much as it is told to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from schemas.config import DataConfig, ModelConfig, TrainConfig
from workers.training.data import load_splits
from workers.training.distillation import Teacher
from workers.training.images import Splits, TensorImages, batches
from workers.training.networks import build_model
from workers.training.train import train

RECIPE = TrainConfig(epochs=12, batch_size=32, learning_rate=0.05)


class Says(nn.Module):
    """Gives these logits to every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def network(seed: int) -> nn.Module:
    model = ModelConfig(arguments={"stem": 4, "widths": [4, 8], "blocks": 1})
    return build_model(model, 10, 1, image_size=8, seed=seed)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(DataConfig(image_size=8), seed=0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_the_labels_mixed_with_the_divergence(
    weight: float, temperature: float
) -> None:
    images, by_labels = torch.zeros(3, 1, 2, 2), torch.tensor(2.0)
    logits = torch.tensor([[0.0, 0.0]]).expand(3, -1)
    teacher = Teacher(Says(temperature * math.log(3.0), 0.0), weight, temperature)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = (1.0 - weight) * 2.0 + weight * temperature**2 * divergence
    loss = teacher.loss(images, logits, by_labels).detach()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_one_who_agrees_with_the_teacher_has_nothing_to_learn() -> None:
    images, logits = torch.zeros(2, 1, 2, 2), torch.tensor([[1.0, -1.0]] * 2, requires_grad=True)
    loss = Teacher(Says(1.0, -1.0), 1.0, 4.0).loss(images, logits, torch.tensor(5.0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


def test_a_student_learns_from_its_teacher_what_the_labels_do_not_say(splits: Splits) -> None:
    """All training labels are wrong; the teacher was trained with the right ones."""
    teacher = network(seed=1)
    taught = train(teacher, splits, RECIPE, seed=0).val_accuracy
    teacher.eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    images, labels = next(batches(splits.train, len(splits.train)))
    wrong = replace(splits, train=TensorImages(images, (labels + 1) % 10))

    by_labels = train(network(seed=2), wrong, RECIPE, seed=0).val_accuracy
    by_teacher = train(
        network(seed=2), wrong, RECIPE, seed=0, teacher=Teacher(teacher, 1.0, 4.0)
    ).val_accuracy
    assert taught > 0.4 and by_teacher > 0.8 * taught and by_labels < 0.4 * taught, (
        by_labels,
        by_teacher,
    )
    assert all(torch.equal(before[name], after) for name, after in teacher.state_dict().items())
    assert not teacher.training


class Counted(nn.Module):
    """How often the network inside was asked."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.calls = inside, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        outputs: Tensor = self.inside(images)
        return outputs


def test_a_batch_that_comes_again_is_not_shown_to_the_teacher_again() -> None:
    says = Counted(Says(1.0, -1.0))
    teacher = Teacher(says, 1.0, 4.0, kept_bytes=3 * 2 * 4)
    images, logits, by_labels = torch.zeros(3, 1, 2, 2), torch.zeros(3, 2), torch.tensor(5.0)
    first = teacher.loss(images, logits, by_labels, batch="first")
    assert torch.equal(teacher.loss(images, logits, by_labels, batch="first"), first)
    assert says.calls == 1
    teacher.loss(images, logits, by_labels, batch="no room for a second")
    teacher.loss(images, logits, by_labels, batch="no room for a second")
    teacher.loss(images, logits, by_labels)
    teacher.loss(images, logits, by_labels)
    assert says.calls == 5


class Listed:
    """The same images, each made when it is asked for."""

    def __init__(self, images: TensorImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._images[index]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_second_training_learns_the_same_from_what_the_teacher_said_in_the_first(
    splits: Splits, in_memory: bool
) -> None:
    """Images that are not in memory may be other ones each time: those it is shown again."""
    few = TensorImages(*next(batches(splits.train, 64)))
    data = replace(splits, train=few if in_memory else Listed(few))
    recipe = RECIPE.model_copy(update={"epochs": 2, "augmentation": "shift"})
    says = Counted(network(seed=1))
    teacher = Teacher(says.eval(), 0.9, 4.0)
    ends = []
    for epochs in (2, 2, 3):
        student = network(seed=2)
        longer = recipe.model_copy(update={"epochs": epochs, "schedule": "constant"})
        outcome = train(student, data, longer, seed=0, teacher=teacher)
        ends.append([epoch.loss for epoch in outcome.history[1:]])
    assert ends[0] == ends[1] == ends[2][:2]
    assert says.calls == (2 * 3 if in_memory else 2 * (2 + 2 + 3))
