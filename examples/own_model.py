"""A network, data and a metric of one's own, as examples/own_model.yaml names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def build(num_classes: int, in_channels: int, width: int = 24) -> nn.Module:
    """The network; ``num_classes`` and ``in_channels`` are those of the data.

    Any torch module that ``torch.export`` takes will do. Weights are trained by the run, or come
    from ``model.checkpoint``.
    """

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    features = nn.Sequential(
        block(in_channels, width, 1), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)
    )
    network = nn.Sequential()
    network.add_module("features", features)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier", nn.Linear(4 * width, num_classes))
    return network


def splits(seed: int = 0, images: int = 1500) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Training, validation and test images: (N, C, H, W) float32, normalised already, and labels.

    Drawn here, so synthetic: a bar in one of four directions under noise.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (images,), generator=generator)
    pictures = 0.6 * torch.randn(images, 1, 16, 16, generator=generator)
    offsets = torch.randint(4, 12, (images,), generator=generator)
    diagonal = torch.eye(16)
    for index in range(images):
        label, at = int(labels[index]), int(offsets[index])
        if label == 0:
            pictures[index, 0, at, :] += 1.0
        elif label == 1:
            pictures[index, 0, :, at] += 1.0
        else:
            bar = torch.roll(diagonal, at - 8, dims=1)
            pictures[index, 0] += bar if label == 2 else bar.flip(1)
    train, validation = int(0.6 * images), int(0.8 * images)
    return (
        TensorDataset(pictures[:train], labels[:train]),
        TensorDataset(pictures[train:validation], labels[train:validation]),
        TensorDataset(pictures[validation:], labels[validation:]),
    )


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share that is recognised, from 0 to 1."""
    hits = logits.argmax(1) == labels
    shares = [hits[labels == label].float().mean().item() for label in labels.unique()]
    return sum(shares) / len(shares)
