"""The networks in CIFAR form have the size they say, and every stage of them can be narrowed."""

from __future__ import annotations

import pytest
import torch

from schemas.config import ModelConfig
from workers.errors import UserError
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import current_widths, network_info, prune_to, uniform_widths
from workers.training.cifar_networks import CIFAR_NETWORKS, resnet18_cifar
from workers.training.networks import build_model

IMAGE = torch.zeros(1, 3, 32, 32)
SMALL = {
    "resnet18_cifar": {"width": 16},
    "vgg16_cifar": {"fraction": 0.25},
    "mobilenet_v2_cifar": {"fraction": 0.5},
}
"""Narrower, so that the tests are quick."""
GROUPS = {
    "resnet18_cifar": 4 + 8,  # one of each stage, one inside each block
    "vgg16_cifar": 13,
    "mobilenet_v2_cifar": 1 + 16 + 7 + 1,  # stem, expansions, ends of the residual chains, last
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18_cifar", 11_173_962),
        ("vgg16_cifar", 14_728_266),
        ("mobilenet_v2_cifar", 2_236_682),
    ],
)
def test_whole_networks_have_the_known_number_of_parameters(name: str, parameters: int) -> None:
    network = CIFAR_NETWORKS[name](num_classes=10)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("resnet18_cifar", 701_466, 35_046_656),
        ("vgg16_cifar", 924_186, 19_907_840),
        ("mobilenet_v2_cifar", 700_490, 27_969_024),
    ],
)
def test_narrower_networks_have_the_size_of_their_widths(
    name: str, parameters: int, macs: int
) -> None:
    info = network_info(build_model(ModelConfig(name=name, arguments=SMALL[name]), 10, 3), IMAGE)
    assert (info.params, info.macs) == (parameters, macs)


@pytest.mark.parametrize("name", SMALL)
def test_images_of_any_number_of_channels_become_logits(name: str) -> None:
    network = build_model(ModelConfig(name=name, arguments=SMALL[name]), 7, 1, image_size=40)
    assert network(torch.zeros(2, 1, 40, 40)).shape == (2, 7)


def test_no_stem_halves_the_resolution() -> None:
    for name, arguments in SMALL.items():
        network = CIFAR_NETWORKS[name](**arguments)
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert layers[0].stride == (1, 1) and layers[0].kernel_size == (3, 3)
    network = resnet18_cifar(width=4)
    stages = torch.nn.Sequential(network.layer2, network.layer3, network.layer4)
    assert stages(torch.zeros(1, 4, 32, 32)).shape == (1, 32, 4, 4)


@pytest.mark.parametrize("name", SMALL)
def test_every_group_but_the_output_can_be_halved(name: str) -> None:
    network = build_model(ModelConfig(name=name, arguments=SMALL[name]), 10, 3)
    groups = channel_groups(network, IMAGE)
    assert len(groups) == GROUPS[name] + 1
    assert [g.reason for g in groups if not g.prunable] == ["its channels are the network's output"]
    widths = uniform_widths(groups, 0.5)
    half = prune_to(network, IMAGE, groups, widths)
    dense = {group.group_id: group.channels for group in groups if group.prunable}
    assert widths == {group_id: channels // 2 for group_id, channels in dense.items()}
    assert {k: v for k, v in current_widths(half, groups).items() if k in dense} == widths
    assert network_info(half, IMAGE).macs < 0.3 * network_info(network, IMAGE).macs


def test_half_the_width_of_resnet_is_resnet_of_half_the_width() -> None:
    config = ModelConfig(name="resnet18_cifar", arguments={"width": 8})
    narrow = build_model(config, 10, 3, 0.5)
    assert network_info(narrow, IMAGE) == network_info(resnet18_cifar(width=4), IMAGE)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("resnet18_cifar", "width", 0),
        ("resnet18_cifar", "width", 16.0),
        ("vgg16_cifar", "fraction", 0),
        ("mobilenet_v2_cifar", "fraction", "half"),
        ("mobilenet_v2_cifar", "fraction", True),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(name: str, argument: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^model\.arguments\.{argument}: .* is not a "):
        build_model(ModelConfig(name=name, arguments={argument: value}), 10, 3)


def test_images_too_small_for_vgg_are_told() -> None:
    config = ModelConfig(name="vgg16_cifar", arguments=SMALL["vgg16_cifar"])
    with pytest.raises(UserError, match=r"^model\.name: vgg16_cifar does not run .*image_size"):
        build_model(config, 10, 3, image_size=16)
