"""Torch-Pruning's global pruning as a ladder of structures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from schemas.config import PruneConfig
from schemas.network import Structure
from workers.errors import UserError
from workers.pruning import ladder
from workers.pruning.groups import channel_groups

IMAGE = torch.zeros(1, 3, 8, 8)
PRUNE = PruneConfig(max_accuracy_drop=0.1)


def rungs(*, frozen: bool = False) -> Sequence[Structure]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))
    groups = channel_groups(network, IMAGE)
    return ladder.global_ladder(network.requires_grad_(not frozen), IMAGE, groups, PRUNE)


def test_every_rung_is_narrower_than_the_one_before() -> None:
    totals = [sum(structure.widths.values()) for structure in rungs()]
    assert len(totals) > 5
    assert totals == sorted(set(totals), reverse=True)
    assert totals[0] < 32


def test_frozen_layers_are_pruned_like_others() -> None:
    assert rungs(frozen=True) == rungs()


def test_a_network_that_it_does_not_understand_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise ValueError("no such reshape")

    monkeypatch.setattr(ladder.tp.pruner, "BasePruner", fails)
    with pytest.raises(UserError, match="does not understand the network"):
        rungs()
