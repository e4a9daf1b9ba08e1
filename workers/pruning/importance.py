"""How important each channel of a group is: the criteria by which filters are chosen.

- l1: sum of a filter's absolute weights; Li et al., Pruning Filters for Efficient ConvNets (ICLR
  2017), section 3.1.
- l2: its Euclidean norm; He et al., Soft Filter Pruning (IJCAI 2018), section 3.2.
- fpgm: sum of its Euclidean distances to the layer's other filters, so that those near the
  geometric median go first; He et al., Filter Pruning via Geometric Median (CVPR 2019), section
  3.3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from workers.pruning.dependency import Member, Members

Ranking = Literal["l1", "l2", "fpgm", "first"]


def group_importance(members: Members, channels: int, ranking: Ranking) -> Tensor:
    """Importance of each of the group's channels, ``(channels,)`` in float64; more is better.

    Each producer's importances are divided by their mean, so that every layer of the group has an
    equal say, then summed. ``first`` ranks the first channels highest, whatever the weights.
    """
    if ranking == "first":
        return torch.arange(channels, 0, -1, dtype=torch.float64)
    total = torch.zeros(channels, dtype=torch.float64)
    for member in members.producers:
        total += _layer_importance(member, channels, ranking)
    return total


def _layer_importance(member: Member, channels: int, ranking: Ranking) -> Tensor:
    parameter = member.layer.weight
    assert isinstance(parameter, Tensor)
    weight = parameter.detach().to("cpu", torch.float64)
    if getattr(member.layer, "transposed", False):
        weight = weight.transpose(0, 1)
    filters = weight.flatten(1)
    if ranking == "l1":
        scores = filters.abs().sum(1)
    elif ranking == "l2":
        scores = filters.square().sum(1).sqrt()
    elif ranking == "fpgm":
        scores = torch.cdist(filters, filters).sum(1)
    else:
        raise ValueError(f"unknown ranking {ranking!r}: l1, l2, fpgm or first")
    mean = scores.mean()
    scores = scores / mean if mean > 0 else torch.zeros_like(scores)
    importance = torch.zeros(channels, dtype=torch.float64)
    importance.index_add_(0, torch.tensor(member.roots), scores[list(member.channels)])
    return importance


def least_important(importance: Tensor, keep: int, divisor: int = 1) -> list[int]:
    """The channels to remove so that ``keep`` stay, in ascending order.

    With ``divisor`` blocks (grouped convolutions) the same places are removed in every block, by
    the sum of their importances. Among equals the first channels stay.
    """
    block = importance.numel() // divisor
    places = importance.reshape(divisor, block).sum(0)
    order = torch.argsort(places, descending=True, stable=True)
    gone = order[keep // divisor :].tolist()
    return sorted(i * block + place for i in range(divisor) for place in gone)
