"""Global pruning as a method to compare with: how Torch-Pruning spreads a ratio over the layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch_pruning as tp
from torch import Tensor, nn

from schemas.config import PruneConfig
from schemas.network import ChannelGroup, Structure
from workers.errors import UserError
from workers.pruning.dependency import LAYERS, evaluating, on_device_of
from workers.pruning.surgery import current_widths

RUNGS = 39
"""From 97.5 % to 2.5 % of all channels."""


def global_ladder(
    model: nn.Module,
    example_input: Tensor,
    groups: Sequence[ChannelGroup],
    config: PruneConfig,
) -> tuple[Structure, ...]:
    """Ever narrower structures of a trained dense network, by one threshold for all channels.

    Torch-Pruning's pruner with ``global_pruning`` and the group magnitude of Fang et al., DepGraph
    (CVPR 2023), section 3.3, in ``RUNGS`` equal steps; ``model`` stays as it is. Which channels
    stay in a group is decided when the network is cut, by ``prune.ranking``.
    """
    pruned = copy.deepcopy(model)
    for parameter in pruned.parameters():  # its graph is read off autograd
        parameter.requires_grad_(parameter.is_floating_point())
    free = {name for group in groups if group.prunable for name in group.producers}
    fixed = [
        layer
        for name, layer in pruned.named_modules()
        if isinstance(layer, LAYERS) and name not in free
    ]
    with evaluating(pruned):
        try:
            pruner = tp.pruner.BasePruner(
                pruned,
                on_device_of(pruned, example_input),
                importance=tp.importance.GroupMagnitudeImportance(p=2),
                global_pruning=True,
                pruning_ratio=RUNGS / (RUNGS + 1),
                max_pruning_ratio=1.0 - config.min_width_fraction,
                iterative_steps=RUNGS,
                ignored_layers=fixed,
            )
        except Exception as error:  # whatever it raises where it cannot follow channels
            raise UserError(
                "prune.policy",
                "Torch-Pruning's global pruning does not understand the network "
                f"({type(error).__name__}: {error})",
                "use another policy",
            ) from error
        prunable = [group for group in groups if group.prunable]
        found: list[Structure] = []
        for _ in range(RUNGS):
            pruner.step()
            structure = Structure().with_widths(current_widths(pruned, prunable))
            if structure not in found:
                found.append(structure)
    dense = Structure().with_widths({group.group_id: group.channels for group in prunable})
    return tuple(structure for structure in found if structure != dense)
