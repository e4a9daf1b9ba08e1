"""What a test of whole networks asks of their layers: work, kinds of channel groups, shares."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schemas.network import ChannelGroup

KINDS = ("plain", "residual", "depthwise", "grouped", "concat", "squeeze-excite")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that ran: its module, and what it did for one image."""

    module: nn.Module
    macs: int
    pixels: int

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.module, nn.Conv2d)


def layers_of(network: nn.Module, image: Tensor) -> dict[str, Layer]:
    """The layers that inference uses, by name, in the order of the modules."""
    outputs: dict[str, torch.Size] = {}
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output.shape})
        )
        for name, module in found.items()
    ]
    with torch.no_grad():
        network.eval()(image)
    for hook in hooks:
        hook.remove()
    return {
        name: Layer(
            module,
            outputs[name].numel() * module.weight[0].numel(),
            outputs[name].numel() // module.weight.shape[0],
        )
        for name, module in found.items()
        if name in outputs
    }


def kinds_of(group: ChannelGroup, layers: dict[str, Layer]) -> frozenset[str]:
    """What holds a group's channels together; ``plain`` where one layer writes them alone."""
    written = [(name, layers[name]) for name in group.producers]
    depthwise = [name for name, layer in written if _is_depthwise(layer.module)]
    gates = [
        name for name, layer in written if layer.pixels == 1 < max(one.pixels for _, one in written)
    ]
    summed = [name for name, _ in written if name not in {*depthwise, *gates}]
    found = {
        "residual": len(summed) > 1,
        "depthwise": bool(depthwise),
        "grouped": group.divisor > 1,
        "concat": any(_reads_more(layers[name].module, group) for name in group.consumers),
        "squeeze-excite": bool(gates),
    }
    return frozenset(kind for kind, is_so in found.items() if is_so) or frozenset({"plain"})


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _reads_more(module: nn.Module, group: ChannelGroup) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels > group.channels


def one_of_each(
    groups: Sequence[ChannelGroup], kinds: dict[str, frozenset[str]]
) -> list[ChannelGroup]:
    """Prunable groups, those of the fewest layers first, until every kind is among them."""
    chosen: list[ChannelGroup] = []
    covered: set[str] = set()
    for group in sorted(groups, key=lambda g: len(g.producers) + len(g.consumers)):
        if group.prunable and not kinds[group.group_id] <= covered:
            chosen.append(group)
            covered |= kinds[group.group_id]
    return chosen


def share(names: Collection[str], layers: dict[str, Layer]) -> float:
    """The share of all convolutions' multiply-accumulates that these layers have."""
    work = {name: layer.macs for name, layer in layers.items() if layer.is_convolution}
    return sum(macs for name, macs in work.items() if name in names) / sum(work.values())
