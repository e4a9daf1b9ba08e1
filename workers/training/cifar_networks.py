"""Well-known networks in the form in which they are used for images of 32x32 pixels (CIFAR).

Their first layers keep the resolution: the forms for ImageNet halve it five times, which leaves one
pixel of 32. Every function gives a network of ``(N, 3, H, W)`` images to ``(N, num_classes)``
logits, with random weights, and raises ``UserError`` that names an argument of the wrong kind.
torchvision is imported where it is needed: that takes seconds.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from workers.pruning.surgery import reinitialise
from workers.training.references import check_count, check_number
from workers.training.small_resnet import SmallResNet

_MOBILENET_V2_BLOCKS = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]
"""Expansion, channels, blocks and stride as torchvision has them, but for the stride of the 24."""


def resnet18_cifar(num_classes: int = 10, width: int = 64) -> nn.Module:
    """ResNet-18 (He et al., CVPR 2016) with the stem of their section 4.2: 3x3, no pooling.

    ``width`` is the number of channels of the stem and the first of the four stages; each stage
    after it has twice as many.
    """
    check_count("model.arguments.width", width)
    return SmallResNet(num_classes, 3, width, [width * 2**stage for stage in range(4)], 2)


def vgg16_cifar(num_classes: int = 10, fraction: float = 1.0) -> nn.Module:
    """VGG-16 with batch norm: 13 convolutions, an average over the image, one linear layer.

    Simonyan and Zisserman, Very Deep Convolutional Networks (ICLR 2015), table 1, column D, with
    one linear layer where they have three. Every width is ``fraction`` of theirs. Images have at
    least 32x32 pixels.
    """
    from torchvision.models.vgg import cfgs, make_layers

    check_number("model.arguments.fraction", fraction, 0.01, 4.0)
    layers = [c if isinstance(c, str) else max(1, round(c * fraction)) for c in cfgs["D"]]
    widths = [width for width in layers if not isinstance(width, str)]
    parts = {
        "features": make_layers(layers, batch_norm=True),
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(widths[-1], num_classes),
    }
    return reinitialise(nn.Sequential(OrderedDict(parts)))


def mobilenet_v2_cifar(num_classes: int = 10, fraction: float = 1.0) -> nn.Module:
    """MobileNetV2 (Sandler et al., CVPR 2018) that halves the resolution three times, not five.

    ``fraction`` is the paper's width multiplier: widths are rounded to multiples of 8, and the last
    convolution is not narrowed.
    """
    from torchvision.models import MobileNetV2

    check_number("model.arguments.fraction", fraction, 0.01, 4.0)
    network: nn.Module = MobileNetV2(num_classes, fraction, _MOBILENET_V2_BLOCKS)
    stem = network.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return network


CIFAR_NETWORKS = {
    "resnet18_cifar": resnet18_cifar,
    "vgg16_cifar": vgg16_cifar,
    "mobilenet_v2_cifar": mobilenet_v2_cifar,
}
