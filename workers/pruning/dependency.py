"""Which layers' channels hang together, from Torch-Pruning's dependency graph.

The graph is that of Fang et al., DepGraph: Towards Any Structural Pruning (CVPR 2023), section 3.
This module is the only one that speaks Torch-Pruning's language: it hands out plain members.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

LAYERS = (_ConvNd, nn.Linear)
"""The layers that produce and consume channels: convolutions of any kind, and linear layers."""


@dataclass(frozen=True)
class Member:
    """One layer of a channel group.

    ``channels[i]`` is the index, on the layer's own output axis (producer) or input axis
    (consumer), of what belongs to channel ``roots[i]`` of the group. A linear layer behind a
    flattening reads several inputs of one channel.
    """

    name: str
    layer: nn.Module
    produces: bool
    channels: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Members:
    """The layers of one channel group; ``is_output`` where the network puts the channels out.

    ``lost_in`` names what regroups the channels, so that they cannot be followed beyond it; empty
    where they are followed to their end. ``norms`` are layer normalisations over the channels.
    """

    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    is_output: bool
    lost_in: str = ""
    norms: tuple[Member, ...] = ()


def out_channels(layer: Any) -> int:
    """Output channels of a convolution, output features of a linear layer."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def first_tensor(output: Any) -> Tensor:
    """A network's logits: its output, or the first of several outputs."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def on_device_of(model: nn.Module, example_input: Tensor) -> Tensor:
    """``example_input`` on the device and in the dtype of the model's first parameter."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return example_input
    return example_input.to(device=parameter.device, dtype=parameter.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; each module's own mode is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


class Surgeon:
    """Cuts channels out of its own deep copy of a network, ``self.model``."""

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        """Traces the network once. Raises whatever the network or the tracing raises."""
        self.model = copy.deepcopy(model)
        self._trainable = {name: p.requires_grad for name, p in self.model.named_parameters()}
        for parameter in self.model.parameters():
            # The graph is read off autograd: a frozen layer would be missing from it.
            parameter.requires_grad_(parameter.is_floating_point())
        self._names = {module: name for name, module in self.model.named_modules()}
        self._order = {name: i for i, name in enumerate(self._names.values())}
        example = on_device_of(self.model, example_input)
        with torch.enable_grad(), evaluating(self.model):
            self._graph = _Graph().build_dependency(
                self.model, example_inputs=(example,), verbose=False
            )
        self._restore_trainable()

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers that the network's forward pass uses, in the order of its modules."""
        for module, name in self._names.items():
            if isinstance(module, LAYERS) and module in self._graph.module2node:
                yield name, module

    def members(self, name: str, channels: Sequence[int] | None = None) -> Members:
        """The layers whose channels go with ``channels`` (all by default) of layer ``name``."""
        group = self._group(name, channels)
        producers: dict[str, Member] = {}
        consumers: dict[str, Member] = {}
        norms: dict[str, Member] = {}
        is_output, lost_in = False, ""
        for item in group.items:
            target, handler = item.dep.target, item.dep.handler
            if target.type == tp.ops.OPTYPE.OUTPUT:
                is_output = True
            if target.module in self._graph.ends:
                lost_in = str(target.grad_fn.name())
            if not isinstance(target.module, (*LAYERS, nn.LayerNorm)):
                continue
            produces = self._graph.is_out_channel_pruning_fn(handler)
            found = producers if produces else consumers
            if isinstance(target.module, nn.LayerNorm):
                found = norms
            member = Member(
                self._names[target.module],
                target.module,
                produces,
                tuple(item.idxs),
                tuple(item.root_idxs),
            )
            found[member.name] = member
        return Members(
            self._sorted(producers),
            self._sorted(consumers),
            is_output,
            lost_in,
            self._sorted(norms),
        )

    def cut(self, name: str, channels: Sequence[int]) -> None:
        """Removes ``channels`` of layer ``name``, and with them all that depends on them."""
        if channels:
            self._group(name, channels).prune(record_history=False)
            self._restore_trainable()

    def _group(self, name: str, channels: Sequence[int] | None) -> Any:
        layer = self.model.get_submodule(name)
        indices = list(range(out_channels(layer)) if channels is None else channels)
        pruner = self._graph.get_pruner_of_module(layer)
        return self._graph.get_pruning_group(layer, pruner.prune_out_channels, indices)

    def _sorted(self, members: dict[str, Member]) -> tuple[Member, ...]:
        return tuple(sorted(members.values(), key=lambda member: self._order[member.name]))

    def _restore_trainable(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])


class _Graph(tp.DependencyGraph):  # type: ignore[misc]
    """Torch-Pruning's graph, cut through where channels are regrouped.

    Torch-Pruning does not understand a reshape that splits the channel axis, as a channel shuffle
    does, and gives up the whole network. Here such an operator is an end: channels are followed up
    to it from either side, and what lies between its ends is left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: set[nn.Module] = set()

    def _trace(self, *arguments: Any, **options: Any) -> Any:
        nodes = super()._trace(*arguments, **options)
        for module, node in nodes.items():
            if _regroups_channels(node.grad_fn):
                self.ends.add(module)
                # its neighbours keep their edges to it: that is how it is met
                node.inputs, node.outputs = [], []
        return nodes


def _regroups_channels(operator: Any) -> bool:
    """Whether an operator of torch's backward graph takes channels apart or puts them together.

    A reshape does where maps ``(N, a * b, H, W)`` become ``(N, a, b, H, W)``, or the reverse;
    shuffles that are one operator are known by their name.
    """
    name = operator.name().lower()
    if "shuffle" in name:
        return True
    if "view" not in name and "reshape" not in name:
        return False
    source, output = operator.next_functions[0]
    shapes = [
        tuple(int(extent) for extent in metadata.shape)
        for metadata in (source._input_metadata[output], operator._input_metadata[0])
    ]
    maps, regrouped = sorted(shapes, key=len)
    return (
        len(maps) == 4
        and len(regrouped) > 4
        and maps[0] == regrouped[0]
        and maps[2:] == regrouped[-2:]
    )
