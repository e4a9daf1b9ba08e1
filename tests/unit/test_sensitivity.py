"""What removing channels is estimated to cost, against what closing their gates really costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from schemas.network import ChannelGroup, Sensitivity
from workers.pruning.groups import channel_groups
from workers.pruning.sensitivity import sensitivities

IMAGE = torch.zeros(1, 3, 8, 8)


class Branches(nn.Module):
    """A residual sum, a depthwise convolution, and a flattening in front of the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.back = nn.Conv2d(12, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4, 5)
        self.gates: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self._gated("stem", functional.relu(self.stem(x)))
        y = self._gated("inner", self.depthwise(functional.relu(self.inner(x))))
        x = functional.relu(x + self._gated("stem", self.norm(self.back(y))))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))

    def _gated(self, name: str, x: Tensor) -> Tensor:
        return x * self.gates[name].reshape(1, -1, 1, 1) if name in self.gates else x


def make() -> tuple[nn.Module, tuple[ChannelGroup, ...], tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    network = Branches().eval()
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    return network, channel_groups(network, IMAGE), (images, labels)


def found(batches: list[tuple[Tensor, Tensor]]) -> dict[str, Sensitivity]:
    network, groups, _ = make()
    return {item.group_id: item for item in sensitivities(network, IMAGE, groups, batches)}


def test_the_estimate_is_the_square_of_the_gates_derivative() -> None:
    """A channel that is read in two places has one gate: the sum of both readings counts."""
    network, groups, (images, labels) = make()
    assert {group.group_id for group in groups if group.prunable} == {"stem", "inner"}
    measured = found([(images, labels)])
    for name, width in (("stem", 8), ("inner", 12)):
        squares = torch.zeros(width)
        for image, label in zip(images, labels, strict=True):
            gate = torch.ones(width, requires_grad=True)
            network.gates = {name: gate}  # type: ignore[assignment]
            loss = functional.cross_entropy(network(image[None]), label[None])
            squares += torch.autograd.grad(loss, gate)[0].square() / len(images)
        assert measured[name].losses[-1] == pytest.approx(float(squares.sum()), rel=1e-3)


def test_it_does_not_depend_on_how_images_are_batched_nor_change_the_network() -> None:
    network, groups, (images, labels) = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    halves = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    whole = sensitivities(network, IMAGE, groups, [(images, labels)])
    for one, other in zip(whole, sensitivities(network, IMAGE, groups, halves), strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_loss_rises_with_what_is_removed() -> None:
    _, _, batch = make()
    for item in found([batch]).values():
        assert len(item.losses) == Sensitivity.PARTS + 1
        assert item.losses[0] == 0.0 and item.losses == tuple(sorted(item.losses))
        assert item.loss(0.0) == 0.0 and item.loss(1.0) == item.losses[-1]
        middle = (item.losses[4] + item.losses[5]) / 2
        assert item.loss(4.5 / Sensitivity.PARTS) == pytest.approx(middle)


class Patches(nn.Module):
    """Calls a layer by keyword, and folds the patches of a map into the batch for another one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.named = nn.Conv2d(8, 12, 3, padding=1)
        self.folded = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.named(input=functional.relu(self.stem(x))))
        n, c, h, w = x.shape
        patches = x.reshape(n, c, 2, h // 2, w).movedim(2, 1).reshape(2 * n, c, h // 2, w)
        return self.head(self.folded(patches).mean((2, 3)).reshape(n, 2, 8).mean(1))


class Alike(nn.Module):
    """A convolution that is added to its own input: it reads the group that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.inner(x))
        return self.head(x.mean((2, 3)))


def test_what_computes_and_reads_a_group_counts_as_a_reader() -> None:
    torch.manual_seed(0)
    network = Alike().eval()
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    groups = channel_groups(network, IMAGE)
    (told,) = sensitivities(network, IMAGE, groups, [(images, labels)])
    squares = torch.zeros(8)
    for image, label in zip(images, labels, strict=True):
        x = functional.relu(network.stem(image[None])).detach()
        gate = torch.ones(8, requires_grad=True)
        x = functional.relu(x + network.inner(x * gate.reshape(1, -1, 1, 1)))
        logits = network.head((x.mean((2, 3))) * gate)
        functional.cross_entropy(logits, label[None]).backward()
        squares += gate.grad.square() / len(images)
    assert told.losses[-1] == pytest.approx(float(squares.sum()), rel=1e-4)


def test_a_group_that_is_read_by_other_rows_than_images_has_no_sensitivity() -> None:
    torch.manual_seed(0)
    network = Patches().eval()
    _, _, (images, labels) = make()
    groups = [
        ChannelGroup(group_id=name, channels=width, producers=(name,), consumers=(reader,))
        for name, width, reader in (("stem", 8, "named"), ("named", 12, "folded"))
    ]
    (known,) = sensitivities(network, IMAGE, groups, [(images, labels)])
    assert known.group_id == "stem"
    squares = torch.zeros(8)
    network.named.register_forward_pre_hook(
        lambda module, inputs, named: (inputs, {"input": named["input"] * gate[:, None, None]}),
        with_kwargs=True,
    )
    for image, label in zip(images, labels, strict=True):
        gate = torch.ones(8, requires_grad=True)
        loss = functional.cross_entropy(network(image[None]), label[None])
        squares += torch.autograd.grad(loss, gate)[0].square() / len(images)
    assert known.losses[-1] == pytest.approx(float(squares.sum()), rel=1e-3)
