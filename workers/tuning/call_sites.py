"""Which call site of a pruned network is which one of its parent's."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.table import NetworkTable, Subgraph


def counterparts(own: NetworkTable, parent: NetworkTable) -> list[tuple[Subgraph, Subgraph]] | None:
    """Each call site of a network beside that of its parent, which has wider layers and may have
    blocks that the network has no more. None where they do not go together.

    Sites without a layer, such as a pooling, go with the layers around them.
    """
    layers = {subgraph.module for subgraph in own.subgraphs}
    left = [
        before
        for before, around in zip(parent.subgraphs, _layers_around(parent.subgraphs), strict=True)
        if around & layers
    ]
    pairs = list(zip(own.subgraphs, left, strict=False))
    if len(left) != len(own.subgraphs) or any(a.module != b.module for a, b in pairs):
        return None
    return pairs


def _layers_around(subgraphs: Sequence[Subgraph]) -> list[set[str | None]]:
    """The layer of each site; of one without, the last layer before it and the first one after."""
    found: list[set[str | None]] = []
    for place in range(len(subgraphs)):
        before = (item.module for item in reversed(subgraphs[: place + 1]) if item.module)
        after = (item.module for item in subgraphs[place:] if item.module)
        found.append({next(before, None), next(after, None)})
    return found
