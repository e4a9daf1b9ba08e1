"""The trial that proves a channel group: its channels are removed, and nothing else changes.

A trial removes a random half of the channels and compares the smaller network's output with that
of the whole network whose consumers' weights for those channels are set to zero. Equal outputs mean
that the group is complete and that nothing else reads the channels: a normalisation across
channels, a reshape or a fixed slice shows itself here, whatever the operator is called.

A layer normalisation over the channels is the one exception that is meant: in the smaller network
it goes over the channels that stay, and so it does in the network that is compared with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from schemas.network import ChannelGroup
from workers.pruning.dependency import (
    LAYERS,
    Member,
    Surgeon,
    evaluating,
    first_tensor,
    on_device_of,
)

_SEED = 20_220_701
_BIG = 20_000_000
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def failures(
    model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]
) -> dict[str, str]:
    """group_id -> why its trial fails, for the groups that cannot be removed as they are described.

    The others pass their trial together. ``model`` is the dense network; it stays as it is.
    """
    return _failures(randomised(model), example_input, groups) if groups else {}


def _failures(
    dense: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]
) -> dict[str, str]:
    """All groups at once, and by halves where that fails: mostly it does not."""
    reason = _trial(dense, example_input, groups)
    if not reason:
        return {}
    if len(groups) == 1:
        return {groups[0].group_id: reason}
    middle = len(groups) // 2
    halves = groups[:middle], groups[middle:]
    found = {k: v for half in halves for k, v in _failures(dense, example_input, half).items()}
    if not found:  # each half passes: they do not go together
        return {group.group_id: reason for group in halves[1]}
    left = [group for group in groups if group.group_id not in found]
    return {**found, **(_failures(dense, example_input, left) if left else {})}


def _trial(dense: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]) -> str:
    """Why the network without a half of the groups' channels is wrong; empty when it is right."""
    try:
        surgeon = Surgeon(dense, example_input)
        masked = Surgeon(dense, example_input)
        absent: dict[Tensor, list[int]] = {}
        for group in groups:
            removed = _random_half(group)
            members = masked.members(group.group_id, removed)
            for member in members.consumers:
                _silence(member)
            for member in members.norms:
                absent.setdefault(member.layer.weight, []).extend(member.channels)
            surgeon.cut(group.group_id, removed)
        with _NormalisedWithout(absent):
            expected = output_of(masked.model, example_input)
        found = output_of(surgeon.model, example_input)
    except Exception as error:
        return f"a trial cut failed ({type(error).__name__}: {error})"
    if expected.shape != found.shape:
        return f"a trial cut changed the output's shape to {tuple(found.shape)}"
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    difference = float((expected - found).abs().max() / scale)
    if not difference <= _TOLERANCE[expected.dtype]:
        return f"a trial cut changed what other channels compute (relative error {difference:.1g})"
    return why_it_cannot_train(surgeon.model, example_input)


def why_it_cannot_train(network: nn.Module, example_input: Tensor) -> str:
    """What only training computes, as auxiliary classifiers do, may read the channels too."""
    images = on_device_of(network, random_images(example_input)[:1].repeat(2, 1, 1, 1))
    try:
        with torch.no_grad():
            network.train()(images)
    except Exception as error:
        return f"a trial cut does not run in training ({type(error).__name__}: {error})"
    return ""


def _random_half(group: ChannelGroup) -> list[int]:
    block = group.channels // group.divisor
    generator = torch.Generator().manual_seed(_SEED)
    offsets = torch.randperm(block, generator=generator)[: max(1, block // 2)].tolist()
    return sorted(i * block + offset for i in range(group.divisor) for offset in offsets)


def _silence(member: Member) -> None:
    """Sets to zero what the layer takes from the given input channels."""
    layer = member.layer
    assert isinstance(layer, LAYERS)
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            layer.weight[:, list(member.channels)] = 0
        elif layer.transposed:
            layer.weight[list(member.channels)] = 0
        else:
            inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
            for channel in member.channels:
                block, offset = divmod(channel, inputs)
                layer.weight[block * outputs : (block + 1) * outputs, offset] = 0


class _NormalisedWithout(TorchFunctionMode):
    """While it is entered, layer normalisations leave some channels out of mean and variance.

    ``absent``: a normalisation's weight -> the channels left out, on the last axis.
    """

    def __init__(self, absent: Mapping[Tensor, Iterable[int]]) -> None:
        super().__init__()
        self._absent = {id(weight): set(channels) for weight, channels in absent.items()}

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        given = options or {}
        if function is functional.layer_norm:
            return self._layer_norm(*arguments, **given)
        return function(*arguments, **given)

    def _layer_norm(
        self,
        values: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        absent = self._absent.get(id(weight))
        if weight is None or absent is None:
            return functional.layer_norm(values, list(normalized_shape), weight, bias, eps)
        stay = values[..., [i for i in range(values.shape[-1]) if i not in absent]]
        mean, variance = stay.mean(-1, keepdim=True), stay.var(-1, correction=0, keepdim=True)
        scaled = (values - mean) / (variance + eps).sqrt() * weight
        return scaled if bias is None else scaled + bias


def randomised(model: nn.Module) -> nn.Module:
    """A copy with random weights, so that no layer is silent by chance; in float64 unless big."""
    network = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.is_floating_point():
                tensor.copy_(_random_weights(tensor.shape, generator))
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    big = sum(parameter.numel() for parameter in network.parameters()) > _BIG
    return network.float() if big else network.double()


def _random_weights(shape: torch.Size, generator: torch.Generator) -> Tensor:
    if len(shape) < 2:
        return torch.rand(shape, generator=generator) + 0.5
    return torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))


def random_images(example_input: Tensor) -> Tensor:
    """Images of the example's shape, always the same."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(example_input.shape, generator=generator)


def output_of(model: nn.Module, example_input: Tensor) -> Tensor:
    """The network's output on random images of the example's shape."""
    with torch.no_grad(), evaluating(model):
        return first_tensor(model(on_device_of(model, random_images(example_input))))
