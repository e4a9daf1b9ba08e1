"""Residual blocks: parts of a network that add to their input, and may be taken out as a whole.

Which modules are such blocks is found out by trying, on random weights: with all its parameters at
zero, one gives back what it is given; and the network without it computes what it does with it at
zero, and runs in training. Taking whole layers out besides filters: Elkerdawy et al., To Filter
Prune, or to Layer Prune, That Is the Question (ACCV 2020).
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from schemas.config import PruneConfig
from schemas.network import Block, ChannelGroup
from workers.errors import cause_of
from workers.pruning.dependency import LAYERS, evaluating, on_device_of
from workers.pruning.trial import output_of, random_images, randomised, why_it_cannot_train

_log = logging.getLogger(__name__)


def residual_blocks(
    model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], config: PruneConfig
) -> tuple[Block, ...]:
    """The innermost residual blocks of a dense network that may be taken out, in its order.

    Not those with a layer that the configuration excludes or gives a least width, nor those without
    a prunable group of their own. ``groups`` are those of the network, ``example_input`` an image,
    ``(1, channels, height, width)``. A module that raises when it is tried is no block.
    """
    found: list[Block] = []
    for name in residual_modules(model, example_input):
        layers = tuple(
            f"{name}.{inner}"
            for inner, module in model.get_submodule(name).named_modules()
            if isinstance(module, LAYERS)
        )
        own = [group for group in groups if set(group.producers) <= set(layers)]
        # A group whose first layer is gone would have lost its name.
        named_here = [group for group in groups if group.group_id in layers]
        cut = tuple(group.group_id for group in own if group.prunable)
        if cut and own == named_here and not is_kept(layers, config):
            found.append(Block(block_id=name, groups=cut, layers=layers))
    return tuple(found)


def residual_modules(model: nn.Module, example_input: Tensor) -> list[str]:
    """The names of the innermost residual blocks of a network, whatever its weights."""
    network = randomised(model)
    found = _innermost(_giving_back(network, example_input))
    if not _is_another(network, example_input, found):
        return found
    return [name for name in found if not _is_another(network, example_input, [name])]


def without_blocks(
    model: nn.Module, blocks: Mapping[str, Sequence[str]], layers: Sequence[str]
) -> nn.Module:
    """A copy of the network without those of ``blocks`` that hold the layers, or are them.

    ``blocks``: name -> the modules that go with it. Raises ``ValueError`` for a layer that is in
    none of them.
    """
    network = copy.deepcopy(model)
    around = {layer: _around(layer, blocks) for layer in layers}
    for name in set(around.values()):
        for module in blocks[name]:
            put(network, module, nn.Identity())
    return network


def _around(layer: str, blocks: Iterable[str]) -> str:
    for name in blocks:
        if layer == name or layer.startswith(f"{name}."):
            return name
    raise ValueError(f"{layer!r} is in no block that could be taken out")


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of this name."""
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)


def is_kept(layers: Sequence[str], config: PruneConfig) -> bool:
    """Whether the configuration says that one of the layers stays."""
    kept = (*config.exclude, *config.min_widths)
    return any(
        any(fnmatchcase(layer, pattern) for pattern in kept)
        or not any(fnmatchcase(layer, pattern) for pattern in config.include)
        for layer in layers
    )


def _innermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _giving_back(model: nn.Module, example_input: Tensor) -> list[str]:
    """The modules with layers that give back their input once their parameters are zero."""
    named = list(model.named_modules(remove_duplicate=False))
    names = Counter(module for _, module in named)
    modules = {
        name: module
        for name, module in named
        if name and names[module] == 1 and _has_layers_of_its_own(module, names)
    }
    found = []
    with torch.no_grad(), evaluating(model):
        for name, given in _inputs(model, example_input, modules).items():
            try:
                with _zeroed(modules[name]):
                    output = modules[name](given.clone())
            except Exception as error:  # whatever a module raises whose parameters are zero
                _log.info("%s is no block: %s", name, cause_of(error))
                continue
            if isinstance(output, Tensor) and torch.equal(output, given):
                found.append(name)
    return found


def _has_layers_of_its_own(module: nn.Module, names: Mapping[nn.Module, int]) -> bool:
    """Layers, none of which has another name elsewhere."""
    layers = [inner for inner in module.modules() if isinstance(inner, LAYERS)]
    return bool(layers) and module not in layers and all(names[layer] == 1 for layer in layers)


def _is_another(network: nn.Module, example_input: Tensor, blocks: Sequence[str]) -> bool:
    """Whether the network without these blocks is not the one with them at zero."""
    shorter = copy.deepcopy(network)
    try:
        with torch.no_grad(), _zeroed(*(network.get_submodule(name) for name in blocks)):
            expected = output_of(network, example_input)
        for name in blocks:
            put(shorter, name, nn.Identity())
        return not torch.equal(output_of(shorter, example_input), expected) or bool(
            why_it_cannot_train(shorter, example_input)
        )
    except Exception as error:  # the network's forward may ask its blocks for more than outputs
        _log.info("the network does not run without %s: %s", ", ".join(blocks), cause_of(error))
        return True


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
def _zeroed(*modules: nn.Module) -> Iterator[None]:
    """The modules with all parameters at zero; they are put back afterwards."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    kept = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.zero_()
        yield
    finally:
        for parameter, before in zip(parameters, kept, strict=True):
            parameter.copy_(before)
