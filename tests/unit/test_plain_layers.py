"""Plain layers: found in chains, taken out of dense and of pruned networks, and what reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import fake_world
import pytest
import torch
import torchvision
from torch import Tensor, nn

from schemas.config import PruneConfig
from schemas.network import Block, Structure
from schemas.work import Prepared
from workers.pruning.blocks import residual_blocks
from workers.pruning.groups import channel_groups
from workers.pruning.plain_layers import plain_blocks, plain_layers
from workers.pruning.surgery import materialise, prune_to
from workers.training.cifar_networks import vgg16_cifar

PRUNE = PruneConfig(max_accuracy_drop=0.05)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vgg() -> nn.Module:
    torch.manual_seed(0)
    return vgg16_cifar(10, 0.25).eval()


def blocks_of(network: nn.Module, config: PruneConfig = PRUNE) -> tuple[Block, ...]:
    image = IMAGES[:1]
    groups = channel_groups(network, image)
    residual = residual_blocks(network, image, groups, config)
    return plain_blocks(network, image, groups, residual, config)


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(network).eval()(IMAGES)
    return found


def chain(*middle: nn.Module, head: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    after = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *middle, after).eval()


def conv(**changes: int) -> nn.Module:
    return nn.Conv2d(8, 8, 3, **{"padding": 1, **changes})


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (vgg, [f"features.{n}" for n in (3, 10, 17, 20, 27, 30, 34, 37, 40)]),
        (lambda: torchvision.models.resnet18(num_classes=10), []),
        (lambda: torchvision.models.mobilenet_v2(num_classes=10), []),
    ],
)
def test_layers_that_keep_the_shape_of_their_maps_are_found(
    build: Callable[[], nn.Module], expected: list[str]
) -> None:
    assert list(plain_layers(build(), IMAGES[:1])) == expected


def test_the_norm_and_the_activation_behind_a_layer_go_with_it() -> None:
    network = chain(conv(), nn.BatchNorm2d(8), nn.PReLU(8), nn.MaxPool2d(2), conv(), nn.Tanh())
    assert plain_layers(network, IMAGES[:1]) == {"2": ("2", "3", "4"), "6": ("6", "7")}


def test_an_activation_that_stands_in_several_places_goes_in_one_of_them() -> None:
    shared = nn.ReLU(inplace=True)
    network = chain(conv(), nn.BatchNorm2d(8), shared, conv(), nn.BatchNorm2d(8), shared)
    found = {"2": ("2", "3", "4"), "5": ("5", "6", "7")}
    assert plain_layers(network, IMAGES[:1]) == found


class Overwriting(nn.Module):
    """Its activation is no module, and overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(), nn.BatchNorm2d(8))

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = torch.relu_(self.inner(maps))
        return found


class Twice(nn.Module):
    """Calls a chain twice, or adds to what it is given."""

    def __init__(self, *, adds: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(), nn.ReLU())
        self.adds = adds

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = maps + self.inner(maps) if self.adds else self.inner(self.inner(maps))
        return found


@pytest.mark.parametrize(
    "middle",
    [
        conv(stride=2),
        conv(groups=8),
        nn.Sequential(conv(), nn.GroupNorm(8, 8)),
        Twice(adds=False),
        Twice(adds=True),
        Overwriting(),
    ],
    ids=["strided", "depthwise", "other norm", "called twice", "added", "cannot be trained"],
)
def test_what_is_no_plain_layer_stays(middle: nn.Module) -> None:
    assert plain_layers(chain(middle), IMAGES[:1]) == {}


def test_what_the_configuration_keeps_stays() -> None:
    for changes in (
        {"exclude": ["features.17", "features.40"]},
        {"min_widths": {"features.17": 4, "features.40": 4}},
    ):
        found = [block.block_id for block in blocks_of(vgg(), PRUNE.model_copy(update=changes))]
        assert found == [f"features.{n}" for n in (3, 10, 20, 27, 30, 34, 37)]


@pytest.mark.parametrize("reader", ["convolution", "linear"])
def test_what_reads_a_layer_takes_up_what_it_computed(reader: str) -> None:
    """Where there is no activation, and no window, the network computes what it did."""
    parts: list[nn.Module] = [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    if reader == "convolution":
        parts.append(conv(padding=0))
    network = chain(*parts, head=head)
    norm = network.get_submodule("3")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            assert tensor is not None
            tensor.copy_(torch.rand(8) + 0.5)
    before = copy.deepcopy(network.state_dict())
    groups, blocks = channel_groups(network, IMAGES[:1]), blocks_of(network)
    narrow = prune_to(network, IMAGES[:1], groups, {"2": 5}, blocks=blocks)
    for wide in (network, narrow):  # its own widths may differ from those that it reads
        shorter = prune_to(wide, IMAGES[:1], groups, {"2": 0}, blocks=blocks)
        assert isinstance(shorter.get_submodule("2"), nn.Identity)
        torch.testing.assert_close(outputs(shorter), outputs(wide), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


CUTS = (
    {"features.17": 0, "features.14": 20, "features.20": 30, "features.40": 0, "features.37": 40},
    {"features.20": 0, "features.14": 12, "features.37": 0, "features.30": 0},
)


def test_a_chain_of_cuts_loads_into_the_network_built_from_its_widths() -> None:
    network = vgg()
    groups, blocks = channel_groups(network, IMAGES[:1]), blocks_of(network)
    structure = Structure()
    for widths in CUTS:
        network = prune_to(network, IMAGES[:1], groups, widths, blocks=blocks)
        structure = structure.with_widths(widths)
        for known in (None, blocks):
            rebuilt = materialise(vgg, IMAGES[:1], structure, known)
            rebuilt.load_state_dict(network.state_dict(), strict=True)
            assert torch.equal(outputs(rebuilt), outputs(network))


def test_the_groups_of_a_structure_are_those_of_its_network() -> None:
    dense = vgg()
    groups, blocks = channel_groups(dense, IMAGES[:1]), blocks_of(dense)
    prepared = Prepared(dense=fake_world.network(), groups=groups, blocks=blocks)
    structure = Structure()
    for widths in CUTS:
        structure = structure.with_widths(widths)
        shorter = materialise(vgg, IMAGES[:1], structure)
        expected = channel_groups(shorter, IMAGES[:1])
        assert [(g.group_id, g.producers, g.consumers) for g in prepared.groups_in(structure)] == [
            (g.group_id, g.producers, g.consumers) for g in expected
        ]
        sources = {
            block.block_id: group.group_id
            for block in blocks
            for group in expected
            if block.block_id in group.consumers
        }
        left = prepared.blocks_in(structure)
        assert {block.block_id: block.source for block in left} == sources
