"""Physical pruning: a smaller network from a network and the widths it is to have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from schemas.network import Block, ChannelGroup, NetworkInfo, Structure
from workers.pruning.blocks import residual_modules, without_blocks
from workers.pruning.dependency import LAYERS, Surgeon, evaluating, on_device_of, out_channels
from workers.pruning.importance import Ranking, group_importance, least_important
from workers.pruning.plain_layers import handed_on, plain_layers


def prune_to(
    model: nn.Module,
    example_input: Tensor,
    groups: Sequence[ChannelGroup],
    widths: Mapping[str, int],
    ranking: Ranking = "l1",
    blocks: Sequence[Block] = (),
) -> nn.Module:
    """A new network whose groups have ``widths``; ``model`` stays as it is.

    ``widths`` maps a group_id to the channels that stay, counted absolutely: the model may be dense
    or pruned already, and groups that are not named keep the width they have. Where none stay, the
    one of ``blocks`` that computes them is taken out. ``groups`` and ``blocks`` are those of the
    dense network. All importances are taken from ``model`` before any channel is cut, so that the
    order of the groups does not matter. Raises ``ValueError`` for a width or group that is not
    possible.
    """
    known = {group.group_id: group for group in groups}
    for group_id, width in widths.items():
        if group_id not in known:
            raise ValueError(f"there is no channel group {group_id!r}")
        group = known[group_id]
        if not group.prunable:
            raise ValueError(f"channel group {group_id} is not prunable: {group.reason}")
        if width % group.divisor:
            raise ValueError(f"width {width} of {group_id} is no multiple of {group.divisor}")
    divisors = {group_id: known[group_id].divisor for group_id in widths}
    parts = {block.block_id: block.parts for block in blocks}
    plain = [block.block_id for block in blocks if block.source and widths.get(block.block_id) == 0]
    if plain:
        model = handed_on(model, example_input, plain)
    return _cut(model, example_input, widths, divisors, ranking, parts)


def materialise(
    build_dense: Callable[[], nn.Module],
    example_input: Tensor,
    structure: Structure,
    blocks: Sequence[Block] | None = None,
) -> nn.Module:
    """A network of the given structure, whose state dictionary loads with ``strict=True``.

    Builds the dense network and cuts it to the structure's widths. Which channels stay says
    nothing: the weights are to be loaded. ``blocks`` saves finding out the dense network's again.
    """
    dense = build_dense()
    if not structure.widths:
        return dense
    parts: dict[str, tuple[str, ...]] = {}
    if blocks is not None:
        parts = {block.block_id: block.parts for block in blocks}
    elif structure.gone:
        residual = {name: (name,) for name in residual_modules(dense, example_input)}
        parts = residual | plain_layers(dense, example_input)
    return _cut(dense, example_input, structure.widths, {}, "first", parts)


def _cut(
    model: nn.Module,
    example_input: Tensor,
    widths: Mapping[str, int],
    divisors: Mapping[str, int],
    ranking: Ranking,
    blocks: Mapping[str, Sequence[str]],
) -> nn.Module:
    gone = [group_id for group_id, width in widths.items() if not width]
    if gone:
        model = without_blocks(model, blocks, gone)
        widths = {group_id: width for group_id, width in widths.items() if width}
    surgeon = Surgeon(model, example_input)
    names = dict(surgeon.layers())
    removed: dict[str, list[int]] = {}
    producers: dict[str, tuple[str, ...]] = {}
    for group_id, width in widths.items():
        if group_id not in names:
            raise ValueError(f"the network has no layer {group_id!r} to cut")
        present = out_channels(names[group_id])
        if not 1 <= width <= present:
            raise ValueError(f"cannot cut {group_id} from {present} to {width} channels")
        members = surgeon.members(group_id)
        producers[group_id] = tuple(member.name for member in members.producers)
        # Blocks matter where channels are chosen; any choice of equal size has the same shapes.
        importance = group_importance(members, present, ranking)
        removed[group_id] = least_important(importance, width, divisors.get(group_id, 1))
    for group_id, channels in removed.items():
        surgeon.cut(group_id, channels)
    for group_id, layers in producers.items():
        for name in layers:
            found = out_channels(surgeon.model.get_submodule(name))
            if found != widths[group_id]:
                raise RuntimeError(f"{name} has {found} channels, not {widths[group_id]}")
    _run_once(surgeon.model, example_input)
    return surgeon.model


def _run_once(model: nn.Module, example_input: Tensor) -> None:
    with torch.no_grad(), evaluating(model):
        model(on_device_of(model, example_input))


def uniform_widths(groups: Sequence[ChannelGroup], fraction: float) -> dict[str, int]:
    """``fraction`` of every prunable group's channels: a multiple of its divisor, never none."""
    return {group.group_id: group.share(fraction) for group in groups if group.prunable}


def current_widths(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """The width that each group has in ``model``."""
    return {g.group_id: out_channels(model.get_submodule(g.group_id)) for g in groups}


def network_info(
    model: nn.Module, example_input: Tensor, class_names: Sequence[str] = ()
) -> NetworkInfo:
    """Size of a network. MACs are those of one image: half the floating-point operations of its
    convolutions and matrix products, as torch's own counter sees them."""
    counter = FlopCounterMode(display=False)
    image = on_device_of(model, example_input[:1])
    with torch.no_grad(), evaluating(model), counter:
        model(image)
    return NetworkInfo(
        macs=int(counter.get_total_flops()) // 2,
        params=sum(parameter.numel() for parameter in model.parameters()),
        input_shape=tuple(example_input.shape),
        class_names=tuple(class_names),
    )


def reinitialise(model: nn.Module) -> nn.Module:
    """Draws all weights anew, in place, from torch's global generator.

    Convolutions by He et al., Delving Deep into Rectifiers (ICCV 2015), section 2.2 (fan out), as
    torchvision's networks do; everything else by its module's own ``reset_parameters``.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        if isinstance(module, LAYERS) and not isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
