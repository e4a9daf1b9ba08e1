"""Plain layers: convolutions of a chain that may be taken out with their norm and activation.

Such a layer gives maps of the shape that it is given, so what reads it can read its input instead.
The weights of what reads it take up what it computed, without its activation and as if maps were
constant over a kernel's window; fine-tuning does the rest. After Fu et al., DepthShrinker (ICML
2022), section 3, where activations go and the convolutions around them are merged into larger ones;
here kernels keep their size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from schemas.config import PruneConfig
from schemas.network import Block, ChannelGroup
from workers.errors import cause_of
from workers.pruning.blocks import is_kept, put
from workers.pruning.dependency import Member, Surgeon, evaluating, first_tensor, on_device_of
from workers.pruning.trial import output_of, random_images, randomised

_log = logging.getLogger(__name__)

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Sigmoid,
)

Parts = dict[str, tuple[str, ...]]
"""Name of a convolution -> the modules that go with it, itself first."""


def plain_blocks(
    model: nn.Module,
    example_input: Tensor,
    groups: Sequence[ChannelGroup],
    residual: Sequence[Block],
    config: PruneConfig,
) -> tuple[Block, ...]:
    """The plain layers of a dense network that may be taken out, in its order.

    Not those in one of the ``residual`` blocks, those that the configuration excludes or gives a
    least width, nor those whose channels cannot be pruned. ``groups`` are those of the network.
    """
    inside = {layer for block in residual for layer in block.layers}
    own = {group.group_id: group for group in groups}
    found: list[Block] = []
    for name, modules in plain_layers(model, example_input).items():
        sources = [group for group in groups if name in group.consumers]
        if (
            name in inside
            or is_kept([name], config)
            or not own[name].prunable
            or [group.channels for group in sources] != [own[name].channels]
        ):
            continue
        found.append(
            Block(
                block_id=name,
                groups=(name,),
                layers=(name,),
                modules=modules,
                source=sources[0].group_id,
            )
        )
    return tuple(found)


def plain_layers(model: nn.Module, example_input: Tensor) -> Parts:
    """The plain layers of a dense network, whatever its weights, in the order of its modules.

    Each is tried, with half of its channels: the network without it has to run, to train, and to
    have the dependencies that are expected of it; all of them together, too.
    """
    network = randomised(model)
    in_chains = _in_chains(network)
    parts = {name: in_chains[name] for name in _same_shapes(network, example_input, in_chains)}
    if not parts:
        return {}
    if _can_go(network, example_input, parts):
        return parts
    return {
        name: modules
        for name, modules in parts.items()
        if _can_go(network, example_input, {name: modules})
    }


def handed_on(model: nn.Module, example_input: Tensor, layers: Collection[str]) -> nn.Module:
    """A copy of the network in which whatever reads one of these plain layers can read what they
    read. The layers are still there, and to be taken out.

    Raises ``ValueError`` for a layer whose readers cannot.
    """
    surgeon = Surgeon(model, example_input)
    network = surgeon.model
    chains = _in_chains(network)
    for name, layer in list(surgeon.layers()):
        if name not in layers:
            continue
        members = surgeon.members(name)
        if [member.name for member in members.producers] != [name] or members.norms:
            raise ValueError(f"{name!r} is no plain layer: its channels are not its own alone")
        after = [network.get_submodule(module) for module in chains.get(name, ())[1:]]
        norm = next((module for module in after if isinstance(module, _BatchNorm)), None)
        for member in members.consumers:
            _take_up(member, layer, norm)
    return network


def _in_chains(network: nn.Module) -> Parts:
    """The convolutions that stand in an ``nn.Sequential``, with the batch norm and the activation
    that follow directly."""
    found: Parts = {}
    for prefix, chain in network.named_modules():
        if type(chain).forward is not nn.Sequential.forward:
            continue
        # named_children() would leave out an activation that stands in several places.
        steps = [(f"{prefix}.{name}".lstrip("."), step) for name, step in chain._modules.items()]
        for number, (name, step) in enumerate(steps):
            if not isinstance(step, nn.Conv2d) or step.groups != 1:
                continue
            parts = [name]
            for kinds in (_BatchNorm, _ACTIVATIONS):
                following = steps[number + len(parts)] if number + len(parts) < len(steps) else None
                if following is not None and isinstance(following[1], kinds):
                    parts.append(following[0])
            found[name] = tuple(parts)
    return found


def _same_shapes(network: nn.Module, example_input: Tensor, names: Collection[str]) -> list[str]:
    """Of these layers those that are called once, with maps of the shape that they give."""
    calls: dict[str, list[bool]] = {name: [] for name in names}

    def watcher(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls[name].append(inputs[0].shape == output.shape)

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(watcher(name)) for name in names]
    try:
        with torch.no_grad(), evaluating(network):
            network(on_device_of(network, random_images(example_input)))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, shapes in calls.items() if shapes == [True]]


def _can_go(dense: nn.Module, example_input: Tensor, parts: Mapping[str, Sequence[str]]) -> bool:
    """Whether the network runs without these layers, and hangs together as it is to."""
    try:
        whole = Surgeon(dense, example_input)
        expected = _dependencies(whole)
        narrow = Surgeon(dense, example_input)
        for name in parts:
            narrow.cut(name, range(dense.get_submodule(name).out_channels // 2))
        shorter = handed_on(narrow.model, example_input, parts)
        for modules in parts.values():
            for module in modules:
                put(shorter, module, nn.Identity())
        same_shape = (
            output_of(shorter, example_input).shape == output_of(dense, example_input).shape
        )
        for name in parts:
            readers = expected.pop(name)[1]
            expected = {
                group: (producers, _replaced(consumers, name, readers))
                for group, (producers, consumers) in expected.items()
            }
        _train_once(copy.deepcopy(shorter), example_input)
        return same_shape and _dependencies(Surgeon(shorter, example_input)) == expected
    except Exception as error:  # whatever a network raises without one of its layers
        _log.info("the network does not run without %s: %s", ", ".join(parts), cause_of(error))
        return False


def _train_once(network: nn.Module, example_input: Tensor) -> None:
    """Raises what a training of the network would raise: activations that overwrite what they are
    given do where two follow each other."""
    images = on_device_of(network, random_images(example_input)[:1].repeat(2, 1, 1, 1))
    with torch.enable_grad():
        first_tensor(network.train()(images)).sum().backward()  # type: ignore[no-untyped-call]


def _dependencies(surgeon: Surgeon) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """Layer -> what computes and what reads its channels."""
    found = {}
    for name, _ in surgeon.layers():
        members = surgeon.members(name)
        found[name] = (
            frozenset(member.name for member in members.producers),
            frozenset(member.name for member in members.consumers),
        )
    return found


def _replaced(names: frozenset[str], gone: str, by: frozenset[str]) -> frozenset[str]:
    return (names - {gone}) | by if gone in names else names


def _take_up(reader: Member, gone: nn.Module, norm: nn.Module | None) -> None:
    """Give the reader of a layer the product of its weights and those of the layer."""
    assert isinstance(gone, nn.Conv2d)
    layer: Any = reader.layer
    through, shift = _as_matrix(gone, norm)
    weight = layer.weight.detach()
    places = weight.shape[1] // len(through)
    in_order = [channel // places for channel in range(weight.shape[1])]
    if list(reader.channels) != list(range(weight.shape[1])) or list(reader.roots) != in_order:
        raise ValueError(f"{reader.name!r} does not read the layer's channels one after the other")
    if isinstance(layer, nn.Linear):
        by_channel = weight.reshape(len(weight), len(through), places)
        changed = torch.einsum("obp,ba->oap", by_channel, through).flatten(1)
        layer.in_features = changed.shape[1]
        summed = by_channel.sum(2)
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        changed = torch.einsum("obhw,ba->oahw", weight, through)
        layer.in_channels = changed.shape[1]
        summed = weight.sum((2, 3))
    else:
        raise ValueError(f"{reader.name!r} is no convolution of all channels, nor a linear layer")
    layer.weight = nn.Parameter(changed.contiguous(), layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach() + summed @ shift, layer.bias.requires_grad)


def _as_matrix(layer: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """What a convolution and its batch norm make of constant maps: (outputs, inputs), (outputs,)"""
    matrix = layer.weight.detach().sum((2, 3))
    shift = torch.zeros_like(matrix[:, 0]) if layer.bias is None else layer.bias.detach()
    if norm is None or norm.running_mean is None:
        return matrix, shift
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = (shift - norm.running_mean) * scale
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach()
        shift = shift + norm.bias.detach()
    return matrix * scale[:, None], shift
