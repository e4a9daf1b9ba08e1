"""Networks without one of their blocks: their call sites find those of the whole one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet
from tvm.target import Target

from schemas.config import PruneConfig
from schemas.network import Structure
from schemas.table import NetworkTable
from workers.compiling.network import relax_network
from workers.compiling.tasks import build_table
from workers.compiling.winograd import Forms, winograd_forms
from workers.pruning.blocks import residual_blocks
from workers.pruning.fold import exported_program, fold_batch_norm, fold_pairs
from workers.pruning.groups import channel_groups
from workers.pruning.plain_layers import plain_blocks
from workers.pruning.surgery import materialise
from workers.tuning.call_sites import counterparts

IMAGE = torch.zeros(1, 3, 16, 16)
TARGET = Target({"kind": "llvm", "num-cores": 2})


class PreActivation(nn.Module):
    """A block that begins with what has no layer: its normalisation is a call of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(32)
        self.conv1 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(32, 16, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.conv1(self.norm1(maps).relu())
        found: Tensor = maps + self.conv2(self.norm2(inner).relu())
        return found


class PreActivations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(PreActivation() for _ in range(3)))
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.blocks(self.stem(images))).relu()
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def chain() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 24), (24, 24)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *layers[:6], nn.MaxPool2d(2), *layers[6:], nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 5)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "chain": (chain, 2),
    "pre-activation": (PreActivations, 3),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=5),
        4,
    ),
    "efficientnet": (
        lambda: EfficientNet([MBConvConfig(4, 3, 1, 16, 16, 3)], 0.0, num_classes=5),
        3,
    ),
    "regnet": (
        lambda: RegNet(BlockParams([3], [16], [8], [1.0], [1], 0.25), num_classes=5, stem_width=16),
        3,
    ),
    "bottleneck": (lambda: ResNet(Bottleneck, [3, 1, 1, 1], num_classes=5), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_call_of_a_shorter_network_has_its_counterpart(name: str) -> None:
    build, count = NETWORKS[name]
    torch.manual_seed(0)
    dense = build().eval()
    groups = channel_groups(dense, IMAGE)
    prune = PruneConfig(max_accuracy_drop=0.05)
    residual = residual_blocks(dense, IMAGE, groups, prune)
    blocks = residual + plain_blocks(dense, IMAGE, groups, residual, prune)
    pairs = fold_pairs(dense, IMAGE)
    whole, forms = table_of(dense, pairs, None)
    assert len(blocks) == count
    for block in blocks:
        narrow = {
            group.group_id: group.share(0.5)
            for group in groups
            if group.prunable and group.group_id not in block.layers
        }
        structure = Structure(widths={**narrow, **dict.fromkeys(block.groups, 0)})
        shorter, _ = table_of(materialise(build, IMAGE, structure).eval(), pairs, forms)
        found = counterparts(shorter, whole)
        assert found is not None, block.block_id
        assert [own.index for own, _ in found] == list(range(len(shorter.subgraphs)))
        assert len(shorter.subgraphs) < len(whole.subgraphs)
        for own, before in found:
            assert own.module == before.module
            assert own.module not in block.layers
            assert len(own.output_shape) == len(before.output_shape)


def table_of(
    network: nn.Module, pairs: tuple[tuple[str, str], ...], forms: Forms | None
) -> tuple[NetworkTable, Forms]:
    """Its call sites, and how its convolutions are computed: as those of the whole network are."""
    program = exported_program(fold_batch_norm(copy.deepcopy(network), IMAGE, pairs), IMAGE)
    chosen = winograd_forms(program) if forms is None else forms
    return build_table(relax_network(program, TARGET, chosen), TARGET).network, chosen
