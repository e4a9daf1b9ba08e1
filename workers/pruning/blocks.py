"""Residual blocks: parts of a network that add to their input, and may be taken out as a whole.

Whether a module is one is found out by trying: with all its parameters at zero, it gives back what
it is given. Then, without it, its input goes on unchanged. Taking whole layers out besides filters:
Elkerdawy et al., To Filter Prune, or to Layer Prune, That Is the Question (ACCV 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from schemas.config import PruneConfig
from schemas.network import Block, ChannelGroup
from workers.pruning.dependency import LAYERS, evaluating, on_device_of
from workers.pruning.trial import random_images


def residual_blocks(
    model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], config: PruneConfig
) -> tuple[Block, ...]:
    """The innermost residual blocks of a dense network that may be taken out, in its order.

    Not those with a layer that the configuration excludes or gives a least width, nor those without
    a prunable group of their own. ``groups`` are those of the network, ``example_input`` an image.
    """
    found: list[Block] = []
    for name in _innermost(_residual(model, example_input)):
        inside = f"{name}."
        layers = tuple(
            f"{inside}{inner}"
            for inner, module in model.get_submodule(name).named_modules()
            if isinstance(module, LAYERS)
        )
        own = [group for group in groups if set(group.producers) <= set(layers)]
        # A group whose first layer is gone would have lost its name.
        named_here = [group for group in groups if group.group_id in layers]
        cut = tuple(group.group_id for group in own if group.prunable)
        if cut and own == named_here and not _kept(layers, config):
            found.append(Block(block_id=name, groups=cut, layers=layers))
    return tuple(found)


def without_blocks(model: nn.Module, example_input: Tensor, layers: Sequence[str]) -> nn.Module:
    """A copy of the network without the innermost residual blocks that hold these layers.

    Raises ``ValueError`` for a layer that is in none.
    """
    network = copy.deepcopy(model)
    wanted = {name for layer in layers for name in _around(layer)}
    blocks = _innermost(_residual(network, example_input, wanted))
    for layer in layers:
        if not any(layer.startswith(f"{name}.") for name in blocks):
            raise ValueError(f"{layer!r} is in no residual block that could be taken out")
    for name in blocks:
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network


def _kept(layers: Sequence[str], config: PruneConfig) -> bool:
    """Whether the configuration says that one of the layers stays."""
    kept = (*config.exclude, *config.min_widths)
    return any(
        any(fnmatchcase(layer, pattern) for pattern in kept)
        or not any(fnmatchcase(layer, pattern) for pattern in config.include)
        for layer in layers
    )


def _around(layer: str) -> Iterator[str]:
    """The modules that hold a layer, the innermost first."""
    while "." in layer:
        layer = layer.rpartition(".")[0]
        yield layer


def _innermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _residual(model: nn.Module, example_input: Tensor, wanted: set[str] | None = None) -> list[str]:
    """The modules with layers that give back their input once their parameters are zero."""
    modules = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name
        and (wanted is None or name in wanted)
        and not isinstance(module, LAYERS)
        and any(isinstance(inner, LAYERS) for inner in module.modules())
    }
    found = []
    with torch.no_grad(), evaluating(model):
        for name, given in _inputs(model, example_input, modules).items():
            with _zeroed(modules[name]):
                output = modules[name](given)
            if isinstance(output, Tensor) and torch.equal(output, given):
                found.append(name)
    return found


def _inputs(
    model: nn.Module, example_input: Tensor, modules: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """What each module is given, of those that are called once, with one tensor that is not zero
    everywhere."""
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {name: [] for name in modules}

    def watcher(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            kept = tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
            calls[name].append((kept, named))

        return hook

    hooks = [
        module.register_forward_pre_hook(watcher(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        model(on_device_of(model, random_images(example_input)))
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, made in calls.items():
        if len(made) != 1:
            continue
        inputs, named = made[0]
        if len(inputs) == 1 and not named and isinstance(inputs[0], Tensor) and inputs[0].any():
            found[name] = inputs[0]
    return found


@contextmanager
def _zeroed(module: nn.Module) -> Iterator[None]:
    """The module with all parameters at zero; they are put back afterwards."""
    kept = {name: parameter.clone() for name, parameter in module.named_parameters()}
    try:
        for parameter in module.parameters():
            parameter.zero_()
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.copy_(kept[name])
