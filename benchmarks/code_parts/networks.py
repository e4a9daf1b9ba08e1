"""The networks that are compiled: random weights, since latency does not depend on them."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import nn

from orchestrator.policies.gates import meets_floor
from orchestrator.store.reader import read_run
from schemas.config import ModelConfig
from workers.export.loading import load_pruned, read_description
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to
from workers.training.networks import build_model


def _resnet18_for_small_images() -> nn.Module:
    """ResNet-18 as it is used for CIFAR: a first layer of 3x3 and stride 1, no pooling behind."""
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


NETWORKS = {
    "resnet18_32": (_resnet18_for_small_images, 32),
    "resnet18_224": (torchvision.models.resnet18, 224),
    "mobilenet_v2_224": (torchvision.models.mobilenet_v2, 224),
    "vgg16_bn_32": (torchvision.models.vgg16_bn, 32),
}
"""Name -> what makes the network, and height and width of its images."""


def network_and_image(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network in evaluation mode and one image (1, 3, size, size)."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False)
    return network, torch.randn(1, 3, size, size)


def halved(network: nn.Module, image: torch.Tensor) -> nn.Module:
    """The network with half of every prunable width, in multiples of 16 (at least 16, or all).

    Fixed widths for the compiler's sake: nothing is trained, and no accuracy is claimed.
    """
    groups = channel_groups(network, image)
    widths = {
        group.group_id: min(group.channels, max(16, group.channels // 2 // 16 * 16))
        for group in groups
        if group.prunable and group.divisor == 1
    }
    return prune_to(network, image, groups, widths, "first").eval().requires_grad_(False)


def of_run(run_dir: Path) -> tuple[nn.Module, nn.Module, torch.Tensor, bool]:
    """A finished run's dense network (its weights say nothing), the pruned one, an image, and
    whether the pruned one's validation accuracy meets the floor.

    Raises ``SystemExit`` for a run of several targets.
    """
    record = read_run(run_dir)
    if len(record.targets) != 1:
        raise SystemExit(f"{run_dir} has {len(record.targets)} targets; name a run of one")
    target = record.targets[0]
    folder = run_dir / "export" / target.target
    description = read_description(folder)
    _, channels, size, _ = description["input"]["shape"]
    model = ModelConfig.model_validate(description["model"])
    classes = len(description["class_names"])
    dense = build_model(model, classes, channels, image_size=size).eval().requires_grad_(False)
    meets = (
        target.final is not None
        and target.accuracy_floor is not None
        and meets_floor(target.final.val_accuracy, target.accuracy_floor)
    )
    torch.manual_seed(0)
    return dense, load_pruned(folder), torch.randn(1, channels, size, size), meets
