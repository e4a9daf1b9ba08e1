"""The network that is tuned: three convolutions as ResNet-18 for 32x32 images has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tvm.target import Target

from workers.compiling.network import RelaxNetwork, relax_network


class ThreeLayers(nn.Module):
    """One convolution with relu of each of the first three stages; the shortcuts are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(64, 64, 3, padding=1)
        self.layer2 = nn.Conv2d(128, 128, 3, padding=1)
        self.layer3 = nn.Conv2d(256, 256, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 64, 32, 32) -> (1, 256, 8, 8)."""
        first = torch.relu(self.layer1(image))
        second = torch.relu(self.layer2(_next_stage(first)))
        return torch.relu(self.layer3(_next_stage(second)))


def three_layers(target: Target) -> RelaxNetwork:
    """The network in TVM, imported and laid out as every network of ours."""
    model = ThreeLayers().eval().requires_grad_(False)
    program = torch.export.export(model, (torch.zeros(1, 64, 32, 32),), strict=False)
    return relax_network(program, target)


def _next_stage(features: Tensor) -> Tensor:
    """Half the height and width, twice the channels."""
    pooled = torch.max_pool2d(features, 2)
    return torch.cat([pooled, pooled], dim=1)
