"""Builds the network that a configuration names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from workers.errors import UserError, cause_of
from workers.pruning.dependency import evaluating, first_tensor
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to, reinitialise, uniform_widths
from workers.training.cifar_networks import CIFAR_NETWORKS
from workers.training.references import call_reference, resolve_reference
from workers.training.small_resnet import small_resnet

_SMALL_RESNET = "small_resnet"
_OWN = {_SMALL_RESNET: small_resnet, **CIFAR_NETWORKS}
_TORCHVISION = "torchvision:"


def build_model(
    config: ModelConfig,
    num_classes: int,
    in_channels: int,
    width_fraction: float = 1.0,
    *,
    image_size: int = 32,
    seed: int = 0,
) -> nn.Module:
    """The dense network that ``config.name`` names, with random weights drawn from ``seed``.

    ``width_fraction`` below one gives the uniformly narrower network, to be trained from scratch:
    of ``small_resnet`` by its arguments, of any other network by cutting every prunable group to
    that fraction and drawing all weights anew. The checkpoint is not loaded here. Raises
    ``UserError`` when the name resolves to nothing, the arguments do not fit, or the network does
    not map ``(N, in_channels, image_size, image_size)`` to ``(N, num_classes)``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        example = torch.randn(1, in_channels, image_size, image_size)
        model = _dense(config, num_classes, in_channels, width_fraction, image_size)
        _check_shapes(config, model, example, num_classes)
        if width_fraction < 1.0 and config.name != _SMALL_RESNET:
            groups = channel_groups(model, example)
            widths = uniform_widths(groups, width_fraction)
            model = reinitialise(prune_to(model, example, groups, widths, "first"))
    return model


def example_input(batch_size: int, in_channels: int, image_size: int) -> Tensor:
    """Zeros in the shape of a network's input, ``(batch_size, in_channels, size, size)``."""
    return torch.zeros(batch_size, in_channels, image_size, image_size)


def _dense(
    config: ModelConfig, num_classes: int, in_channels: int, width_fraction: float, image_size: int
) -> nn.Module:
    arguments = dict(config.arguments)
    if config.name in _OWN:
        if width_fraction < 1.0 and config.name == _SMALL_RESNET:
            for name, default in (("stem", 16), ("widths", (16, 32, 64))):
                arguments[name] = _scaled(arguments.get(name, default), width_fraction)
        offered: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
        own: nn.Module = call_reference(
            _OWN[config.name], arguments, offered, "model.name", config.name
        )
        return _with_in_channels(own, in_channels) if config.name in CIFAR_NETWORKS else own
    if config.name.startswith(_TORCHVISION):
        return _torchvision(
            config.name.removeprefix(_TORCHVISION), arguments, num_classes, in_channels
        )
    if ":" in config.name:
        function = resolve_reference(config.name, "model.name")
        offered = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "image_size": image_size,
        }
        model = call_reference(function, arguments, offered, "model.name", config.name)
        if not isinstance(model, nn.Module):
            raise UserError(
                "model.name",
                f"{config.name} returned {type(model).__name__}, not a torch module",
                "return an instance of torch.nn.Module",
            )
        return model
    raise UserError(
        "model.name",
        f"there is no network {config.name!r}",
        f"use one of {', '.join(_OWN)}, torchvision:NAME or module:function",
    )


def _scaled(width: Any, fraction: float) -> Any:
    if isinstance(width, list | tuple):
        return [_scaled(part, fraction) for part in width]
    return max(1, round(width * fraction)) if isinstance(width, int) else width


def _torchvision(
    name: str, arguments: dict[str, Any], num_classes: int, in_channels: int
) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            "model.name",
            f"torchvision has no classification network {name!r}",
            "see torchvision.models.list_models(), for instance torchvision:resnet18",
        )
    model = call_reference(
        lambda **given: torchvision.models.get_model(name, **given),
        arguments,
        {"weights": None, "num_classes": num_classes},
        "model.name",
        f"{_TORCHVISION}{name}",
    )
    return _with_in_channels(_without_auxiliary_classifiers(model), in_channels)


def _without_auxiliary_classifiers(model: nn.Module) -> nn.Module:
    """Without the second and third output that some networks have in training, in place.

    The loss here is of the first output alone. Left where they are, they would read channels that
    the deployed network no longer has.
    """
    if getattr(model, "aux_logits", False):
        model.aux_logits = False
        for name, _ in list(model.named_children()):
            if name.lower().startswith("aux"):
                setattr(model, name, None)
    return model


def _with_in_channels(model: nn.Module, in_channels: int) -> nn.Module:
    """Replaces the convolution that reads the image, in place, where it reads three channels."""
    if in_channels == 3:
        return model
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, attribute = name.rpartition(".")
            shape: dict[str, Any] = {
                "kernel_size": module.kernel_size,
                "stride": module.stride,
                "padding": module.padding,
                "dilation": module.dilation,
                "bias": module.bias is not None,
            }
            first = nn.Conv2d(in_channels, module.out_channels, **shape)
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            setattr(model.get_submodule(parent), attribute, first)
            break
    return model


def _check_shapes(config: ModelConfig, model: nn.Module, example: Tensor, num_classes: int) -> None:
    try:
        with torch.no_grad(), evaluating(model):
            shape = tuple(first_tensor(model(example)).shape)
    except Exception as error:
        raise UserError(
            "model.name",
            f"{config.name} does not run on an input of shape {tuple(example.shape)} "
            f"({cause_of(error)})",
            "correct data.image_size, model.arguments or the network",
        ) from error
    if shape != (1, num_classes):
        raise UserError(
            "model.name",
            f"{config.name} gives an output of shape {shape}, not (1, {num_classes})",
            f"the data has {num_classes} classes: set the number of classes in model.arguments",
        )
