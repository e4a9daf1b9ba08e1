"""The channel groups of a network, each proven prunable by a trial (``workers.pruning.trial``)."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from schemas.network import ChannelGroup
from workers.errors import UserError
from workers.pruning.dependency import (
    Member,
    Members,
    Surgeon,
    evaluating,
    on_device_of,
    out_channels,
)
from workers.pruning.trial import failures


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
    failed = failures(model, example_input, [group for group in groups if group.prunable])
    return tuple(
        group.model_copy(update={"prunable": False, "reason": failed[group.group_id]})
        if group.group_id in failed
        else group
        for group in groups
    )


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
            "use a network without such reshaping of channels",
        ) from error


def _describe(
    name: str, members: Members, exclude: Sequence[str], include: Sequence[str]
) -> ChannelGroup:
    channels = out_channels(next(m.layer for m in members.producers if m.name == name))
    divisor = math.lcm(*(_blocks(member) for member in (*members.producers, *members.consumers)))
    reason = (
        _left_out(members, exclude, include)
        or (
            f"its channels are regrouped ({members.lost_in}), which cannot be followed"
            if members.lost_in
            else ""
        )
        or (
            "its channels are the network's output"
            if members.is_output or not members.consumers
            else ""
        )
        or _partial(members, channels)
        or _grouped_transposed(members)
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


def _grouped_transposed(members: Members) -> str:
    """Its weights do not have a filter for each output channel, by which those are ranked."""
    for member in members.producers:
        layer = member.layer
        if isinstance(layer, _ConvNd) and layer.transposed and layer.groups > 1:
            return f"{member.name} is a transposed convolution in {layer.groups} groups"
    return ""


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
