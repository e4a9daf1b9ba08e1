"""Which call site of a pruned network is which one of its parent's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from schemas.table import NetworkTable, Subgraph

Pairs = list[tuple[Subgraph, Subgraph]]


def counterparts(own: NetworkTable, parent: NetworkTable) -> Pairs | None:
    """Each call site of a network beside that of its parent, which has wider layers and may have
    blocks that the network has no more. None where they do not go together.

    Layers go by their names. Sites without one, such as a pooling, go with those between the same
    two layers: all of them in order, or where a block is gone from between, those that are called
    alike, the last ones first.
    """
    layers = {site.module for site in own.subgraphs if site.module}
    names = {task.task_id: _kind(task.name) for task in (*own.tasks, *parent.tasks)}
    here, there = _gaps(own.subgraphs, layers), _gaps(parent.subgraphs, layers)
    if len(here) != len(there):
        return None
    pairs: Pairs = []
    for (layer, sites), (parents_layer, parents_sites) in zip(here, there, strict=True):
        if layer is not None and parents_layer is not None:
            pairs.append((layer, parents_layer))
        if (layer and layer.module) != (parents_layer and parents_layer.module):
            return None
        found = _between(sites, parents_sites, names)
        if found is None:
            return None
        pairs += found
    return pairs


def _gaps(
    sites: Sequence[Subgraph], layers: set[str]
) -> list[tuple[Subgraph | None, list[Subgraph]]]:
    """Each call of one of the layers with the sites without a layer that follow it; what comes
    before the first one follows none."""
    found: list[tuple[Subgraph | None, list[Subgraph]]] = [(None, [])]
    for site in sites:
        if site.module in layers:
            found.append((site, []))
        elif site.module is None:
            found[-1][1].append(site)
    return found


def _between(
    sites: Sequence[Subgraph], parents: Sequence[Subgraph], names: dict[str, str]
) -> Pairs | None:
    if len(sites) == len(parents):
        return list(zip(sites, parents, strict=True))
    left = list(parents)
    pairs: Pairs = []
    for site in reversed(sites):
        while left and names.get(left[-1].task_id) != names.get(site.task_id):
            left.pop()
        if not left:
            return None
        pairs.append((site, left.pop()))
    return pairs[::-1]


def _kind(name: str) -> str:
    """A task's name without the numbers that tell it from others of its kind."""
    return re.sub(r"\d+", "", name)
