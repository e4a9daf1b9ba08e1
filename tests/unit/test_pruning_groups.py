"""Channel groups are exact, and what cannot be pruned is said so, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from schemas.config import RunConfig
from schemas.network import ChannelGroup
from workers.artifacts import ArtifactStore
from workers.errors import UserError
from workers.networks import Networks
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to
from workers.training.small_resnet import small_resnet

RGB = torch.zeros(1, 3, 32, 32)
GREY = torch.zeros(1, 1, 32, 32)


def _by_id(groups: tuple[ChannelGroup, ...]) -> dict[str, ChannelGroup]:
    return {group.group_id: group for group in groups}


def test_small_resnet() -> None:
    groups = _by_id(channel_groups(small_resnet(), GREY))
    assert {g: (v.channels, v.producers, v.consumers) for g, v in groups.items()} == {
        "conv1": (
            16,
            ("conv1", "layer1.0.conv2"),
            ("layer1.0.conv1", "layer2.0.conv1", "layer2.0.downsample.0"),
        ),
        "layer1.0.conv1": (16, ("layer1.0.conv1",), ("layer1.0.conv2",)),
        "layer2.0.conv1": (32, ("layer2.0.conv1",), ("layer2.0.conv2",)),
        "layer2.0.conv2": (
            32,
            ("layer2.0.conv2", "layer2.0.downsample.0"),
            ("layer3.0.conv1", "layer3.0.downsample.0"),
        ),
        "layer3.0.conv1": (64, ("layer3.0.conv1",), ("layer3.0.conv2",)),
        "layer3.0.conv2": (64, ("layer3.0.conv2", "layer3.0.downsample.0"), ("fc",)),
        "fc": (10, ("fc",), ()),
    }
    assert [g for g, v in groups.items() if not v.prunable] == ["fc"]
    assert groups["fc"].reason == "its channels are the network's output"


def test_resnet18_has_one_group_per_stage_and_one_per_block() -> None:
    groups = _by_id(channel_groups(torchvision.models.resnet18(num_classes=10), RGB))
    assert len(groups) == 4 + 8 + 1
    assert groups["layer3.0.conv2"].producers == (
        "layer3.0.conv2",
        "layer3.0.downsample.0",
        "layer3.1.conv2",
    )
    assert groups["layer3.0.conv2"].consumers == (
        "layer3.1.conv1",
        "layer4.0.conv1",
        "layer4.0.downsample.0",
    )
    assert groups["conv1"].producers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    assert groups["layer4.1.conv1"].consumers == ("layer4.1.conv2",)


def test_mobilenet_v2_prunes_a_depthwise_convolution_with_its_expansion() -> None:
    groups = _by_id(channel_groups(torchvision.models.mobilenet_v2(num_classes=10), RGB))
    assert len(groups) == 1 + 16 + 7 + 1 + 1
    assert [g for g, v in groups.items() if not v.prunable] == ["classifier.1"]
    expansion = groups["features.2.conv.0.0"]
    assert expansion.channels == 96 and expansion.divisor == 1
    assert expansion.producers == ("features.2.conv.0.0", "features.2.conv.1.0")
    assert expansion.consumers == ("features.2.conv.2",)
    assert groups["features.0.0"].producers == ("features.0.0", "features.1.conv.0.0")
    residual = groups["features.2.conv.2"]
    assert residual.producers == ("features.2.conv.2", "features.3.conv.2")
    assert residual.consumers == ("features.3.conv.0.0", "features.4.conv.0.0")


def test_grouped_convolutions_give_a_divisor() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.Conv2d(24, 32, 3, groups=4), nn.Conv2d(32, 5, 3)
    )
    groups = _by_id(channel_groups(network, RGB))
    assert groups["0"].divisor == 4 and groups["0"].prunable
    assert groups["1"].divisor == 4 and groups["1"].consumers == ("2",)


def test_frozen_layers_are_seen() -> None:
    network = small_resnet().requires_grad_(False)
    assert channel_groups(network, GREY) == channel_groups(small_resnet(), GREY)
    assert not network.conv1.weight.requires_grad


def test_finding_groups_leaves_the_network_alone() -> None:
    network = small_resnet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    channel_groups(network, GREY)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_excluded_modules_are_not_prunable_and_the_pattern_is_named() -> None:
    groups = _by_id(channel_groups(small_resnet(), GREY, ["layer1.*"]))
    assert [g for g, v in groups.items() if not v.prunable] == ["conv1", "layer1.0.conv1", "fc"]
    assert (
        groups["conv1"].reason == "layer1.0.conv2 is excluded by prune.exclude pattern 'layer1.*'"
    )
    with pytest.raises(UserError, match=r"^prune\.exclude: 'layer9\*' matches no module"):
        channel_groups(small_resnet(), GREY, ["layer9*"])


def test_with_include_only_what_matches_is_pruned() -> None:
    groups = _by_id(channel_groups(small_resnet(), GREY, include=["layer2.*", "*.conv1"]))
    assert {name for name, group in groups.items() if group.prunable} == {
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
    }
    assert groups["conv1"].reason == "conv1 matches no pattern of prune.include"
    with pytest.raises(UserError, match=r"^prune\.include: 'layer9\*' matches no module"):
        channel_groups(small_resnet(), GREY, include=["layer9*"])


def test_a_least_width_for_no_module_is_refused(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "data": {"image_size": 16},
            "prune": {"max_accuracy_drop": 0.1, "min_widths": {"layer1.*": 8, "layer9*": 8}},
        }
    )
    networks = Networks(config, ArtifactStore(str(tmp_path)))
    with pytest.raises(UserError, match=r"^prune\.min_widths: 'layer9\*' matches no module"):
        _ = networks.groups


class _Halves(nn.Module):
    """Splits channels at a place that its code fixes: they cannot be removed at will."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.left, self.right = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, dim=1)
        x = self.last(self.left(left) + self.right(right))
        return self.head(x.mean((2, 3)))


class _AcrossChannels(nn.Module):
    """A normalisation over all channels: removing one changes what the others give."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm = nn.GroupNorm(1, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.norm(self.first(x))).mean((2, 3)))


def test_groups_that_fail_a_trial_are_set_aside_and_the_others_go_on() -> None:
    halves = _by_id(channel_groups(_Halves(), GREY))
    assert not halves["first"].prunable and halves["first"].reason.startswith("a trial cut failed")
    assert halves["left"].prunable and halves["last"].prunable
    across = _by_id(channel_groups(_AcrossChannels(), GREY))
    assert not across["first"].prunable and "other channels compute" in across["first"].reason
    assert across["second"].prunable


class _Shuffled(nn.Module):
    """A unit whose channels are halved, and shuffled behind it."""

    def __init__(self, shuffle: nn.Module) -> None:
        super().__init__()
        self.stem, self.shuffle = nn.Conv2d(1, 8, 3), shuffle
        self.inner, self.outer = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.shuffle(self.stem(x)).chunk(2, dim=1)
        x = torch.cat((kept, self.outer(self.inner(changed))), 1)
        return self.head(self.last(self.shuffle(x)).mean((2, 3)))


class _Interleave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        maps = x.view(x.shape[0], 2, -1, *x.shape[2:])
        return maps.transpose(1, 2).contiguous().view(x.shape)


@pytest.mark.parametrize("shuffle", [_Interleave(), nn.ChannelShuffle(2)])
def test_channels_are_followed_up_to_a_shuffle(shuffle: nn.Module) -> None:
    groups = _by_id(channel_groups(_Shuffled(shuffle), GREY))
    assert {name for name, group in groups.items() if group.prunable} == {"inner", "last"}
    for name in ("stem", "outer"):
        assert groups[name].reason.startswith("its channels are regrouped")
    assert groups["inner"].consumers == ("outer",)


class _Normalised(nn.Module):
    """Layer normalisations over the channels of a sum, with maps' channels in either place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.second(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.head(self.norm(x.mean((2, 3))))


def test_a_layer_norm_goes_over_the_channels_that_stay() -> None:
    network = _Normalised()
    groups = channel_groups(network, GREY)
    (group,) = [group for group in groups if group.prunable]
    assert group.producers == ("first", "second")
    pruned = prune_to(network, GREY, groups, {"first": 5})
    assert pruned.norm.normalized_shape == (5,)


def test_what_only_training_reads_is_not_cut() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
            self.head, self.auxiliary = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.first(x)
            logits = self.head(self.second(x).mean((2, 3)))
            return (logits, self.auxiliary(x.mean((2, 3)))) if self.training else logits

    groups = _by_id(channel_groups(Auxiliary(), GREY))
    assert groups["second"].prunable and not groups["first"].prunable
    assert groups["first"].reason.startswith("a trial cut does not run in training")


def test_concatenated_channels_are_groups_of_their_own() -> None:
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 6, 3)
            self.norm, self.c = nn.BatchNorm2d(10), nn.Conv2d(10, 2, 30)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1))).flatten(1)

    groups = _by_id(channel_groups(Concat(), GREY))
    assert groups["a"].prunable and groups["b"].prunable and not groups["c"].prunable
    assert groups["a"].consumers == groups["b"].consumers == ("c",)


def test_a_network_that_does_not_run_names_the_field() -> None:
    with pytest.raises(
        UserError, match=r"^model\.name: the network does not run .*\(1, 3, 32, 32\)"
    ):
        channel_groups(small_resnet(), RGB)


def test_a_transposed_convolution_in_groups_is_left_out_by_name() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, groups=8), nn.Conv2d(8, 4, 1)
    )
    first = channel_groups(network, torch.zeros(1, 3, 8, 8))[0]
    assert not first.prunable
    assert first.reason == "1 is a transposed convolution in 8 groups"
