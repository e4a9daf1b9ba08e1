"""What removing channels would cost, estimated without removing any.

Each channel of a group has a gate that stands at 1; closing it removes the channel. The square of
the loss's derivative by the gate, averaged over images, estimates what that costs: Molchanov et
al., Importance Estimation for Neural Network Pruning (CVPR 2019), section 3. The derivative is the
sum of the products of values and gradients wherever the channel is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from schemas.network import ChannelGroup, Sensitivity
from workers.pruning.dependency import (
    Member,
    Surgeon,
    evaluating,
    first_tensor,
    on_device_of,
    out_channels,
)
from workers.pruning.importance import Ranking, group_importance, least_important


def sensitivities(
    model: nn.Module,
    example_input: Tensor,
    groups: Sequence[ChannelGroup],
    batches: Iterable[tuple[Tensor, Tensor]],
    ranking: Ranking = "l1",
    *,
    yield_cores: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Sensitivity, ...]:
    """The sensitivity of each prunable group of a trained network, which stays as it is.

    But of those with a reader whose rows are not the images (patches folded into the batch).
    ``groups`` are those of the dense network, ``batches`` images ``(n, C, H, W)`` and labels
    ``(n,)``. Channels go in the order of ``ranking``, as they do when the network is pruned.
    ``yield_cores()`` is entered around each batch.
    """
    surgeon = Surgeon(model, example_input)
    own = surgeon.model
    for parameter in own.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    members = {
        group.group_id: surgeon.members(group.group_id) for group in groups if group.prunable
    }
    widths = {name: out_channels(own.get_submodule(name)) for name in members}
    gates = _Gates(widths)
    readers: dict[str, list[tuple[str, Member]]] = defaultdict(list)
    for name, found in members.items():
        producers = {member.name for member in found.producers}
        for member in found.consumers:
            if member.name not in producers or not _hands_on(own.get_submodule(member.name)):
                readers[member.name].append((name, member))
    hooks = [
        own.get_submodule(reader).register_forward_pre_hook(gates.watcher(read), with_kwargs=True)
        for reader, read in readers.items()
    ]
    squares = {name: torch.zeros(width, dtype=torch.float64) for name, width in widths.items()}
    count = 0
    with torch.enable_grad(), evaluating(own):
        for images, labels in batches:
            with yield_cores():
                gates.begin(len(images))
                logits = first_tensor(own(on_device_of(own, images)))
                loss = functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                for name, gate in gates.found.items():
                    squares[name] += gate.double().square().sum(0).cpu()
                own.zero_grad(set_to_none=True)
            count += len(labels)
    for hook in hooks:
        hook.remove()
    divisors = {group.group_id: group.divisor for group in groups}
    return tuple(
        Sensitivity(
            group_id=name,
            losses=_losses(
                squares[name] / max(1, count),
                group_importance(found, widths[name], ranking),
                divisors[name],
            ),
        )
        for name, found in members.items()
        if name not in gates.unknown
    )


def _hands_on(layer: nn.Module) -> bool:
    """Whether it computes each channel from the one of its number alone, and so reads none."""
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == getattr(layer, "in_channels", None))


class _Gates:
    """The derivatives of all gates for one batch, image by image."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        """``widths``: group -> channels."""
        self.found: dict[str, Tensor] = {}
        self.unknown: set[str] = set()
        """Groups with a reader whose rows are not the images."""
        self._widths = widths
        self._images = 0

    def begin(self, images: int) -> None:
        """The next batch has so many."""
        self.found.clear()
        self._images = images

    def watcher(self, read: Sequence[tuple[str, Member]]) -> Callable[..., Any]:
        """A hook that adds the derivatives at one layer that reads these groups."""

        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            arguments = [*inputs, *named.values()]
            values = arguments[0].clone()  # the gradient of this reading alone, not of all others
            if values.requires_grad:
                values.register_hook(self._adder(module, values.detach(), read))
            if inputs:
                return (values, *inputs[1:]), named
            return inputs, {**named, next(iter(named)): values}

        return hook

    def _adder(
        self, module: nn.Module, values: Tensor, read: Sequence[tuple[str, Member]]
    ) -> Callable[[Tensor], None]:
        def on_gradient(gradient: Tensor) -> None:
            if len(values) != self._images:
                self.unknown.update(name for name, _ in read)
                return
            axis = -1 if isinstance(module, nn.Linear) else 1
            maps = (values * gradient).movedim(axis, 1)
            products = maps.reshape(*maps.shape[:2], -1).sum(2)
            for name, member in read:
                empty = products.new_zeros(len(products), self._widths[name])
                roots = torch.tensor(member.roots, device=products.device)
                gate = self.found.setdefault(name, empty)
                gate.index_add_(1, roots, products[:, list(member.channels)])

        return on_gradient


def _losses(costs: Tensor, importance: Tensor, divisor: int) -> tuple[float, ...]:
    """The sum of the costs of the channels that go, at each sixteenth of the width."""
    width, parts = len(costs), Sensitivity.PARTS
    found = []
    for part in range(parts + 1):
        keep = round(width // divisor * (parts - part) / parts) * divisor
        gone = least_important(importance, keep, divisor)
        found.append(float(costs[gone].sum()))
    return tuple(found)
