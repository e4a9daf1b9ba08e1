"""The channel groups of a network, each proven prunable by a trial.

A trial removes a random half of the channels and compares the smaller network's output with that
of the whole network whose consumers' weights for those channels are set to zero. Equal outputs mean
that the group is complete and that nothing else reads the channels: a normalisation across
channels, a reshape or a fixed slice shows itself here, whatever the operator is called.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from schemas.network import ChannelGroup
from workers.errors import UserError
from workers.pruning.dependency import (
    LAYERS,
    Member,
    Members,
    Surgeon,
    evaluating,
    first_tensor,
    on_device_of,
    out_channels,
)

_SEED = 20_220_701
_BIG = 20_000_000
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def channel_groups(
    model: nn.Module,
    example_input: Tensor,
    exclude: Sequence[str] = (),
    include: Sequence[str] = ("*",),
) -> tuple[ChannelGroup, ...]:
    """All channel groups of a dense network, in the order of its modules.

    ``example_input`` is ``(N, channels, height, width)``. A group that cannot or must not be pruned
    is listed with ``prunable=False`` and the reason: also one of whose producers matches a pattern
    of ``exclude`` (fnmatch) or none of ``include``. Raises ``UserError`` when the network does not
    run or trace at all, and for a pattern that matches no module.
    """
    check_patterns(model, "prune.exclude", exclude)
    check_patterns(model, "prune.include", include)
    surgeon = _surgeon(model, example_input)
    groups: list[ChannelGroup] = []
    covered: set[str] = set()
    for name, layer in surgeon.layers():
        if name in covered:
            continue
        try:
            group = _describe(name, surgeon.members(name), exclude, include)
        except Exception as error:
            group = ChannelGroup(
                group_id=name,
                channels=out_channels(layer),
                producers=(name,),
                consumers=(),
                prunable=False,
                reason=f"its dependencies are not understood ({type(error).__name__}: {error})",
            )
        covered.update(group.producers)
        groups.append(group)
    return _without_failures(model, example_input, groups)


def check_patterns(model: nn.Module, field: str, patterns: Iterable[str]) -> None:
    """Raises ``UserError`` for a pattern of the configuration's field that matches no module."""
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                field, f"{pattern!r} matches no module", "correct or remove the pattern"
            )


def _surgeon(model: nn.Module, example_input: Tensor) -> Surgeon:
    shape = tuple(example_input.shape)
    try:
        with torch.no_grad(), evaluating(model):
            model(on_device_of(model, example_input))
    except Exception as error:
        raise UserError(
            "model.name",
            f"the network does not run on an input of shape {shape} "
            f"({type(error).__name__}: {error})",
            "correct its forward pass, or data.image_size",
        ) from error
    try:
        return Surgeon(model, example_input)
    except Exception as error:
        raise UserError(
            "model.name",
            "which channels of the network belong together cannot be read "
            f"(Torch-Pruning: {type(error).__name__}: {error})",
            "use a network without channel shuffling or reshaping of channels",
        ) from error


def _describe(
    name: str, members: Members, exclude: Sequence[str], include: Sequence[str]
) -> ChannelGroup:
    channels = out_channels(next(m.layer for m in members.producers if m.name == name))
    divisor = math.lcm(*(_blocks(member) for member in (*members.producers, *members.consumers)))
    reason = (
        _left_out(members, exclude, include)
        or (
            "its channels are the network's output"
            if members.is_output or not members.consumers
            else ""
        )
        or _partial(members, channels)
        or (
            f"no smaller width is a multiple of its {divisor} convolution groups"
            if divisor >= channels or channels % divisor
            else ""
        )
    )
    return ChannelGroup(
        group_id=name,
        channels=channels,
        producers=tuple(member.name for member in members.producers),
        consumers=tuple(member.name for member in members.consumers),
        divisor=divisor,
        prunable=not reason,
        reason=reason,
    )


def _blocks(member: Member) -> int:
    """Blocks of a grouped convolution, between which removed channels must be shared equally."""
    layer = member.layer
    if not isinstance(layer, _ConvNd) or layer.groups == layer.in_channels == layer.out_channels:
        return 1
    return layer.groups


def _left_out(members: Members, exclude: Sequence[str], include: Sequence[str]) -> str:
    for member in members.producers:
        for pattern in exclude:
            if fnmatch.fnmatchcase(member.name, pattern):
                return f"{member.name} is excluded by prune.exclude pattern {pattern!r}"
        if not any(fnmatch.fnmatchcase(member.name, pattern) for pattern in include):
            return f"{member.name} matches no pattern of prune.include"
    return ""


def _partial(members: Members, channels: int) -> str:
    for member in members.producers:
        if len(member.channels) != out_channels(member.layer):
            return f"its channels are only a part of those of {member.name}"
        if set(member.roots) != set(range(channels)):
            return f"its channels are not in step with those of {member.name}"
    return ""


def _without_failures(
    model: nn.Module, example_input: Tensor, groups: list[ChannelGroup]
) -> tuple[ChannelGroup, ...]:
    """Tries all groups at once, and one by one only when that fails."""
    candidates = [group for group in groups if group.prunable]
    dense = _randomised(model)
    if not candidates or not _trial(dense, example_input, candidates):
        return tuple(groups)
    failures = {group.group_id: _trial(dense, example_input, [group]) for group in candidates}
    return tuple(
        group.model_copy(update={"prunable": False, "reason": failures[group.group_id]})
        if failures.get(group.group_id)
        else group
        for group in groups
    )


def _trial(dense: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]) -> str:
    """Why the network without a half of the groups' channels is wrong; empty when it is right."""
    try:
        surgeon = Surgeon(dense, example_input)
        masked = Surgeon(dense, example_input)
        for group in groups:
            removed = _random_half(group)
            for member in masked.members(group.group_id, removed).consumers:
                _silence(member)
            surgeon.cut(group.group_id, removed)
        expected, found = (_output(network.model, example_input) for network in (masked, surgeon))
    except Exception as error:
        return f"a trial cut failed ({type(error).__name__}: {error})"
    if expected.shape != found.shape:
        return f"a trial cut changed the output's shape to {tuple(found.shape)}"
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    difference = float((expected - found).abs().max() / scale)
    if not difference <= _TOLERANCE[expected.dtype]:
        return f"a trial cut changed what other channels compute (relative error {difference:.1g})"
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


def _randomised(model: nn.Module) -> nn.Module:
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


def _output(model: nn.Module, example_input: Tensor) -> Tensor:
    """The network's output on random images of the example's shape."""
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(example_input.shape, generator=generator)
    with torch.no_grad(), evaluating(model):
        return first_tensor(model(on_device_of(model, images)))
