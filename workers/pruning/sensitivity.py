"""What removing channels would cost, estimated without removing any.

Each channel of a group has a gate that stands at 1; closing it removes the channel. The square of
the loss's derivative by the gate, averaged over images, estimates what that costs: Molchanov et
al., Importance Estimation for Neural Network Pruning (CVPR 2019), section 3. The derivative is the
sum of the products of values and gradients wherever the channel is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

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
    gates: dict[str, Tensor] = {}
    readers: dict[str, list[tuple[str, Member]]] = defaultdict(list)
    for name, found in members.items():
        producers = {member.name for member in found.producers}
        for member in found.consumers:
            if member.name not in producers:  # a depthwise convolution hands its input on
                readers[member.name].append((name, member))
    hooks = [
        own.get_submodule(reader).register_forward_pre_hook(_watcher(read, widths, gates))
        for reader, read in readers.items()
    ]
    squares = {name: torch.zeros(width, dtype=torch.float64) for name, width in widths.items()}
    count = 0
    with torch.enable_grad(), evaluating(own):
        for images, labels in batches:
            with yield_cores():
                gates.clear()
                logits = first_tensor(own(on_device_of(own, images)))
                loss = functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                for name, gate in gates.items():
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
    )


def _watcher(
    read: Sequence[tuple[str, Member]], widths: dict[str, int], gates: dict[str, Tensor]
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that adds, image by image, the gates' derivatives at one layer that reads them."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = inputs[0].clone()  # the gradient of this reading alone, not of all others too
        if not values.requires_grad:
            return inputs

        def on_gradient(gradient: Tensor) -> None:
            axis = -1 if isinstance(module, nn.Linear) else 1
            maps = (values.detach() * gradient).movedim(axis, 1)
            products = maps.reshape(*maps.shape[:2], -1).sum(2)
            for name, member in read:
                gate = gates.setdefault(name, products.new_zeros(len(products), widths[name]))
                roots = torch.tensor(member.roots, device=products.device)
                gate.index_add_(1, roots, products[:, list(member.channels)])

        values.register_hook(on_gradient)
        return (values, *inputs[1:])

    return hook


def _losses(costs: Tensor, importance: Tensor, divisor: int) -> tuple[float, ...]:
    """The sum of the costs of the channels that go, at each sixteenth of the width."""
    width, parts = len(costs), Sensitivity.PARTS
    found = []
    for part in range(parts + 1):
        keep = round(width // divisor * (parts - part) / parts) * divisor
        gone = least_important(importance, keep, divisor)
        found.append(float(costs[gone].sum()))
    return tuple(found)
