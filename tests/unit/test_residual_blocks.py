"""Residual blocks: found by trying, taken out whole, and their place in a structure."""

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
from workers.pruning.blocks import residual_blocks, without_blocks
from workers.pruning.gradual import widths_on_the_way
from workers.pruning.groups import channel_groups
from workers.pruning.sensitivity import sensitivities
from workers.pruning.surgery import materialise, prune_to
from workers.training.small_resnet import small_resnet

PRUNE = PruneConfig(max_accuracy_drop=0.05)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BLOCKS = {"layer1.1": ("layer1.1",), "layer2.1": ("layer2.1",)}


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def blocks_of(network: nn.Module, config: PruneConfig = PRUNE) -> tuple[Block, ...]:
    return residual_blocks(network, IMAGES[:1], channel_groups(network, IMAGES[:1]), config)


def names_of(network: nn.Module, config: PruneConfig = PRUNE) -> list[str]:
    return [block.block_id for block in blocks_of(network, config)]


def outputs(network: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(network).eval()(images)
    return found


class Adding(nn.Module):
    """Adds two convolutions to what it is given, or to its half."""

    def __init__(self, channels: int = 8, share: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.second = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.share = share

    def forward(self, maps: Tensor) -> Tensor:
        added: Tensor = self.second(self.first(maps).relu())
        return self.share * maps + added


class Network(nn.Module):
    def __init__(self, *parts: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.parts = nn.Sequential(*parts)
        self.head = nn.Linear(8, 10)
        self.times = times

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        for _ in range(self.times):
            maps = self.parts(maps)
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (resnet, ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        (
            lambda: torchvision.models.mobilenet_v2(num_classes=10),
            [f"features.{n}" for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)],
        ),
        (lambda: torchvision.models.vgg11_bn(num_classes=10), []),
    ],
)
def test_the_blocks_that_add_to_their_input_are_found(
    build: Callable[[], nn.Module], expected: list[str]
) -> None:
    assert names_of(build()) == expected


def test_a_block_names_the_groups_and_layers_that_go_with_it() -> None:
    block = next(b for b in blocks_of(resnet()) if b.block_id == "layer2.1")
    assert block.groups == ("layer2.1.conv1",)
    assert block.layers == ("layer2.1.conv1", "layer2.1.conv2")


def test_only_the_innermost_blocks_count_and_only_those_that_give_their_input_back() -> None:
    network = Network(nn.Sequential(Adding(), Adding()), Adding(share=0.5), nn.ReLU())
    assert names_of(network) == ["parts.0.0", "parts.0.1"]


def test_a_block_that_is_called_twice_stays() -> None:
    assert names_of(Network(Adding(), times=2)) == []


class Ending(Adding):
    """Ends in something that needs no parameters of its own to change what it is given."""

    def __init__(self, ending: nn.Module) -> None:
        super().__init__()
        self.ending = ending

    def forward(self, maps: Tensor) -> Tensor:
        ended: Tensor = self.ending(super().forward(maps))
        return ended


class InPlace(Adding):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.relu_())


class Aliased(Network):
    """What the block is given is read once more, after its output was overwritten."""

    def forward(self, images: Tensor) -> Tensor:
        given = self.stem(images)
        logits: Tensor = self.head((self.parts(given).relu_() + given).mean((2, 3)))
        return logits


class Marked(Network):
    """Asks its blocks for more than their outputs."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        for part in self.parts:
            maps = part.share * part(maps)
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


class Named(Network):
    """Has its block under two names."""

    def __init__(self) -> None:
        super().__init__(Adding())
        self.again = self.parts[0]


class Inverse(Adding):
    """Cannot compute anything with its parameters at zero."""

    def forward(self, maps: Tensor) -> Tensor:
        square = self.second.weight[:, :8, 1, 1]
        return super().forward(maps) + 0 * torch.linalg.inv(square).sum()


@pytest.mark.parametrize(
    "network",
    [
        Network(Ending(nn.ReLU())),
        Network(Ending(nn.BatchNorm2d(8, affine=False))),
        Network(InPlace()),
        Network(Inverse()),
        Aliased(Adding()),
        Marked(Adding()),
        Named(),
    ],
    ids=lambda network: f"{type(network).__name__}-{type(network.parts[0]).__name__}",
)
def test_what_only_looks_like_a_block_stays(network: nn.Module) -> None:
    assert names_of(network) == []


def test_one_block_that_must_stay_keeps_no_other() -> None:
    assert names_of(Network(Adding(), InPlace(), Adding())) == ["parts.0", "parts.2"]


def test_what_the_configuration_keeps_stays() -> None:
    for changes in (
        {"exclude": ["layer2.1.*"]},
        {"min_widths": {"layer2.1.conv1": 4}},
        {"include": ["layer1.*", "layer3.*", "layer4.*"]},
    ):
        found = names_of(resnet(), PRUNE.model_copy(update=changes))
        assert found == ["layer1.0", "layer1.1", "layer3.1", "layer4.1"]


def test_without_a_block_a_network_computes_what_it_does_with_a_silent_one() -> None:
    network = resnet()
    silent = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in silent.get_submodule("layer2.1").parameters():
            parameter.zero_()
    shorter = without_blocks(network, BLOCKS, ["layer2.1.conv1"])
    assert torch.equal(outputs(shorter), outputs(silent))
    assert not torch.equal(outputs(shorter), outputs(network))


def test_a_layer_that_is_in_no_block_cannot_be_taken_out() -> None:
    with pytest.raises(ValueError, match="is in no block that could be taken out"):
        without_blocks(resnet(), BLOCKS, ["layer2.0.conv1"])


def test_a_chain_of_cuts_with_blocks_loads_into_the_network_built_from_its_widths() -> None:
    network = resnet()
    groups, blocks = channel_groups(network, IMAGES[:1]), blocks_of(network)
    structure = Structure()
    for widths in (
        {"layer1.1.conv1": 0, "layer2.1.conv1": 64, "conv1": 48},
        {"layer2.1.conv1": 0, "layer4.0.conv2": 256, "layer1.0.conv1": 0},
    ):
        network = prune_to(network, IMAGES[:1], groups, widths, blocks=blocks)
        structure = structure.with_widths(widths)
    rebuilt = materialise(resnet, IMAGES[:1], structure)
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(outputs(rebuilt), outputs(network))
    names = {name for name, _ in network.named_parameters()}
    assert not any(name.startswith(("layer1.", "layer2.1.")) for name in names)


def test_the_groups_of_a_structure_have_no_layers_of_blocks_that_are_gone() -> None:
    dense = resnet()
    groups = channel_groups(dense, IMAGES[:1])
    prepared = Prepared(dense=fake_world.network(), groups=groups, blocks=blocks_of(dense))
    structure = Structure(widths={"layer2.1.conv1": 0, "layer1.0.conv1": 16})
    shorter = materialise(resnet, IMAGES[:1], structure)
    found = [group for group in prepared.groups_in(structure) if group.prunable]
    assert [(g.group_id, g.producers, g.consumers) for g in found] == [
        (g.group_id, g.producers, g.consumers)
        for g in channel_groups(shorter, IMAGES[:1])
        if g.prunable
    ]
    left = [block.block_id for block in prepared.blocks_in(structure)]
    assert left == ["layer1.0", "layer1.1", "layer3.1", "layer4.1"]
    assert prepared.groups_in(Structure()) == groups


def test_a_block_goes_in_the_first_of_several_steps() -> None:
    groups = channel_groups(small_resnet(), IMAGES[:, :1])
    after = {"layer1.0.conv1": 0, "layer2.0.conv1": 8}
    first, *others = widths_on_the_way(groups, {"layer3.0.conv1": 0}, after, 3)
    assert first["layer1.0.conv1"] == 0 and first["layer2.0.conv1"] > 8
    assert all("layer1.0.conv1" not in step for step in others)
    assert others[-1]["layer2.0.conv1"] == 8
    assert all("layer3.0.conv1" not in step for step in (first, *others))


def test_what_is_left_of_a_network_without_a_block_has_its_sensitivities() -> None:
    dense = resnet()
    groups = channel_groups(dense, IMAGES[:1])
    structure = Structure(widths={"layer2.1.conv1": 0})
    shorter = materialise(resnet, IMAGES[:1], structure).eval()
    standing = [group for group in groups if group.group_id not in structure.gone]
    labels = torch.tensor([0, 1])
    found = sensitivities(shorter, IMAGES[:1], standing, [(IMAGES, labels)])
    expected = {group.group_id for group in standing if group.prunable}
    assert {item.group_id for item in found} == expected
