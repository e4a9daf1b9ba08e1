"""A small residual network for small images.

The basic block and the projection shortcut are those of He et al., Deep Residual Learning for Image
Recognition (CVPR 2016), section 3.3; the 3x3 stem without pooling is that of their section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workers.errors import UserError
from workers.training.references import check_count


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is projected where shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)) + shortcut
        return torch.relu(x)


class SmallResNet(nn.Module):
    """``(N, in_channels, H, W)`` images to ``(N, num_classes)`` logits."""

    def __init__(
        self, num_classes: int, in_channels: int, stem: int, widths: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        channels = stem
        self.stages = len(widths)
        for stage, width in enumerate(widths, start=1):
            layers = []
            for block in range(blocks):
                layers.append(BasicBlock(channels, width, 2 if block == 0 and stage > 1 else 1))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def small_resnet(
    num_classes: int = 10,
    in_channels: int = 1,
    stem: int = 16,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 1,
) -> SmallResNet:
    """The quickstart's network: ``blocks`` basic blocks per stage; later stages halve H and W.

    Raises ``UserError`` that names the argument which is no whole number, or no list of them.
    """
    check_count("model.arguments.stem", stem)
    check_count("model.arguments.blocks", blocks)
    if not isinstance(widths, list | tuple) or not widths or not all(map(_is_count, widths)):
        raise UserError(
            "model.arguments.widths",
            f"{widths!r} is not a list of whole numbers of at least 1",
            "give the width of each stage, for example [16, 32, 64]",
        )
    return SmallResNet(num_classes, in_channels, stem, tuple(widths), blocks)
