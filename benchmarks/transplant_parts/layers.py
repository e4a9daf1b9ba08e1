"""Layers of real networks, each as a small network of its own, and the widths they are cut to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A convolution with batch norm and activation as its network has it, on images of ``size``.

    ``groups`` is 1, or the number of channels for a depthwise convolution; a linear layer has
    ``kernel`` 0 and no size.
    """

    network: str
    name: str
    inputs: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1
    is_depthwise: bool = False
    activates: bool = True

    @property
    def title(self) -> str:
        """For the table."""
        return f"{self.network} {self.name}"

    def module(self) -> tuple[nn.Module, Tensor]:
        """The layer in evaluation mode, and an input ``(1, inputs, size, size)``."""
        torch.manual_seed(0)
        if not self.kernel:
            return nn.Sequential(nn.Linear(self.inputs, self.outputs), nn.ReLU()).eval(), (
                torch.randn(1, self.inputs)
            )
        groups = self.inputs if self.is_depthwise else 1
        parts: list[nn.Module] = [
            nn.Conv2d(
                self.inputs,
                self.outputs,
                self.kernel,
                self.stride,
                self.kernel // 2,
                groups=groups,
                bias=False,
            ),
            nn.BatchNorm2d(self.outputs),
        ]
        if self.activates:
            parts.append(nn.ReLU6())
        image = torch.randn(1, self.inputs, self.size, self.size)
        return nn.Sequential(*parts).eval(), image

    def cut(self, side: str, width: int) -> Layer:
        """The layer with so many channels on its ``output`` or ``input`` side."""
        if self.is_depthwise:
            return replace(self, inputs=width, outputs=width)
        return replace(self, outputs=width) if side == "output" else replace(self, inputs=width)


RESNET, MOBILE, VGG = "resnet18", "mobilenet_v2", "vgg16_bn"
LAYERS = (
    Layer(RESNET, "layer1.0.conv1", 64, 64, 3, 56),
    Layer(RESNET, "layer2.0.conv1", 64, 128, 3, 56, stride=2),
    Layer(RESNET, "layer2.1.conv1", 128, 128, 3, 28),
    Layer(RESNET, "layer3.1.conv1", 256, 256, 3, 14),
    Layer(RESNET, "layer4.1.conv1", 512, 512, 3, 7),
    Layer(MOBILE, "features.3 expand", 24, 144, 1, 56),
    Layer(MOBILE, "features.3 depthwise", 144, 144, 3, 56, is_depthwise=True),
    Layer(MOBILE, "features.8 depthwise", 384, 384, 3, 14, is_depthwise=True),
    Layer(MOBILE, "features.8 project", 384, 64, 1, 14, activates=False),
    Layer(MOBILE, "features.18", 320, 1280, 1, 7),
    Layer(VGG, "features.7", 64, 128, 3, 16),
    Layer(VGG, "features.17", 256, 256, 3, 8),
    Layer(VGG, "features.27", 512, 512, 3, 4),
    Layer(VGG, "classifier.3", 4096, 4096, 0, 1),
)
