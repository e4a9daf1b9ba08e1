"""Pruned networks are smaller, compute what they should, and rebuild from their widths."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from schemas.network import Structure
from workers.pruning.dependency import Surgeon
from workers.pruning.groups import channel_groups
from workers.pruning.importance import Ranking, group_importance, least_important
from workers.pruning.surgery import (
    current_widths,
    materialise,
    network_info,
    prune_to,
    uniform_widths,
)
from workers.training.small_resnet import small_resnet

Build = Callable[[], nn.Module]
NETWORKS: dict[str, tuple[Build, int]] = {
    "small_resnet": (small_resnet, 1),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 3),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 3),
    "resnext": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 10, groups=8, width_per_group=4
        ),
        3,
    ),
}


def _images(channels: int, count: int = 2) -> Tensor:
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def _run(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).eval()(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_chain_of_cuts_loads_into_the_network_built_from_its_widths(name: str) -> None:
    build, channels = NETWORKS[name]
    dense, images = build(), _images(channels)
    groups = channel_groups(dense, images[:1])
    structure, network = Structure(), dense
    ranking: Ranking
    for fraction, ranking in ((0.75, "l1"), (0.5, "fpgm")):
        widths = uniform_widths(groups, fraction)
        network = prune_to(network, images[:1], groups, widths, ranking)
        structure = structure.with_widths(widths)
    rebuilt = materialise(build, images[:1], structure)
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(_run(rebuilt, images), _run(network, images))
    prunable = [group for group in groups if group.prunable]
    assert current_widths(rebuilt, prunable) == structure.widths


def test_a_cut_network_computes_what_the_masked_one_does() -> None:
    network, images = small_resnet(), _images(1)
    groups = {group.group_id: group for group in channel_groups(network, images[:1])}
    group = groups["conv1"]
    pruned = prune_to(network, images[:1], [group], {"conv1": 10}, "first")
    masked = copy.deepcopy(network)
    with torch.no_grad():
        for name in group.consumers:
            masked.get_submodule(name).weight[:, 10:] = 0
    assert torch.allclose(_run(pruned, images), _run(masked, images), atol=1e-5)


def test_the_cut_is_physical_and_the_given_network_stays() -> None:
    network, images = small_resnet(), _images(1, 1)
    groups = channel_groups(network, images)
    before = network_info(network, images)
    pruned = prune_to(network, images, groups, {"layer3.0.conv1": 24, "conv1": 8})
    after = network_info(pruned, images)
    assert pruned.layer3[0].conv1.weight.shape == (24, 32, 3, 3)
    assert pruned.layer3[0].conv2.weight.shape == (64, 24, 3, 3)
    assert pruned.conv1.out_channels == pruned.layer1[0].conv2.out_channels == 8
    assert after.macs < before.macs and after.params < before.params
    assert network_info(network, images) == before
    assert network.training and pruned.training
    assert all(parameter.requires_grad for parameter in pruned.parameters())


def test_macs_are_those_of_one_image_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.Flatten(), nn.Linear(8 * 16 * 16, 5),
    )  # fmt: skip
    info = network_info(network, _images(3, 4), ["a", "b"])
    assert info.macs == 16 * 16 * 8 * 27 + 16 * 16 * 8 * 9 + 8 * 16 * 16 * 5
    assert info.params == 8 * 28 + 8 * 10 + 8 * 256 * 5 + 5
    assert info.input_shape == (4, 3, 32, 32) and info.class_names == ("a", "b")


class _TwoProducers(nn.Module):
    """``a`` and ``b`` are added, so that their three channels are one group."""

    def __init__(self, a: list[list[float]], b: list[list[float]]) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(2, 3, 1, bias=False) for _ in range(2))
        self.head = nn.Conv2d(3, 1, 1)
        for layer, rows in ((self.a, a), (self.b, b)):
            layer.weight.data = torch.tensor(rows).reshape(3, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + self.b(x)).mean((2, 3))


# a: l1 norms 7, 6, 8; l2 norms 5, 6, sqrt(32). b is about a hundred times larger, so that only the
# division by each layer's mean lets a have its say.
A = [[3.0, 4.0], [6.0, 0.0], [4.0, 4.0]]
B = [[500.0, 0.0], [400.0, 0.0], [500.0, 0.0]]


@pytest.mark.parametrize(
    ("ranking", "a", "b"),
    [
        ("l1", [7, 6, 8], [500, 400, 500]),
        ("l2", [5, 6, 32**0.5], [500, 400, 500]),
        (
            "fpgm",
            [5 + 1, 5 + 20**0.5, 1 + 20**0.5],
            [100, 200, 100],
        ),
    ],
)
def test_importance_is_summed_over_producers_each_divided_by_its_mean(
    ranking: Ranking, a: list[float], b: list[float]
) -> None:
    surgeon = Surgeon(_TwoProducers(A, B), torch.zeros(1, 2, 4, 4))
    found = group_importance(surgeon.members("a"), 3, ranking)
    expected = [x * 3 / sum(a) + y * 3 / sum(b) for x, y in zip(a, b, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("ranking", "kept"), [("l1", [0, 2]), ("fpgm", [0, 1]), ("first", [0, 1])])
def test_the_least_important_channel_of_the_whole_group_goes(
    ranking: Ranking, kept: list[int]
) -> None:
    network = _TwoProducers(A, B)
    example = torch.zeros(1, 2, 4, 4)
    pruned = prune_to(network, example, channel_groups(network, example), {"a": 2}, ranking)
    assert torch.equal(pruned.a.weight, network.a.weight[kept])
    assert torch.equal(pruned.b.weight, network.b.weight[kept])
    assert torch.equal(pruned.head.weight, network.head.weight[:, kept])


def test_blocks_of_grouped_convolutions_lose_the_same_places() -> None:
    importance = torch.tensor([1.0, 9.0, 5.0, 6.0, 2.0, 7.0])
    assert least_important(importance, 4, divisor=2) == [
        place for place in range(6) if place % 3 == 0
    ]
    assert least_important(torch.ones(4), 2) == [2, 3], "among equals the first stay"
    assert least_important(torch.ones(4), 4) == []


def test_silent_layers_do_not_break_the_ranking() -> None:
    network = _TwoProducers([[0.0, 0.0]] * 3, B)
    example = torch.zeros(1, 2, 4, 4)
    pruned = prune_to(network, example, channel_groups(network, example), {"a": 2}, "l1")
    assert torch.equal(pruned.b.weight, network.b.weight[[0, 2]])


def test_uniform_widths_keep_the_divisor_and_at_least_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 12, 3), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 3))
    groups = channel_groups(network, _images(1, 1))
    assert uniform_widths(groups, 0.7) == {"0": 8, "1": 4}
    assert uniform_widths(groups, 0.01) == {"0": 4, "1": 4}


def test_impossible_widths_are_refused() -> None:
    network, images = small_resnet(), _images(1, 1)
    groups = channel_groups(network, images)
    for widths, words in (
        ({"conv1": 17}, "from 16 to 17"),
        ({"conv1": -1}, "from 16 to -1"),
        ({"conv1": 0}, "is in no block that could be taken out"),
        ({"conv9": 4}, "no channel group 'conv9'"),
        ({"fc": 4}, "not prunable: its channels are the network's output"),
    ):
        with pytest.raises(ValueError, match=words):
            prune_to(network, images, groups, widths)
    grouped = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 3))
    with pytest.raises(ValueError, match="no multiple of 2"):
        prune_to(grouped, images, channel_groups(grouped, images), {"0": 5})
    with pytest.raises(ValueError, match="no layer 'conv9'"):
        materialise(small_resnet, images, Structure(widths={"conv9": 4}))


def test_frozen_parameters_stay_frozen() -> None:
    network, images = small_resnet(), _images(1, 1)
    network.conv1.weight.requires_grad_(False)
    pruned = prune_to(network, images, channel_groups(network, images), {"conv1": 8})
    assert [n for n, p in pruned.named_parameters() if not p.requires_grad] == ["conv1.weight"]
