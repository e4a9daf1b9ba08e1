"""The calls of a network, and what they would take with other widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.policies.call_costs import CallCosts
from orchestrator.policies.latency_model import Shape, as_read, kept, shapes_of
from schemas.network import Block, ChannelGroup
from schemas.work import Tuned


@dataclass(frozen=True)
class _Site:
    """A call: what it costs now, the groups whose channels it computes and reads, and those that go
    with the block that it is in."""

    cost_ms: float
    shape: Shape
    computes: tuple[ChannelGroup, ...]
    reads: tuple[ChannelGroup, ...]
    block: tuple[str, ...]

    def ms(
        self,
        costs: CallCosts,
        widths: Mapping[str, int],
        shares: Mapping[str, float],
        seen: Mapping[str, float],
    ) -> float:
        """``seen``: the shares as what reads the groups sees them."""
        if self.block and all(shares.get(group) == 0.0 for group in self.block):
            return 0.0
        outputs, inputs = kept(shares, widths, self.computes), kept(seen, widths, self.reads)
        return self.cost_ms * costs.ratio(self.shape, outputs, inputs)


class Sites:
    """The calls of a network: each is what was measured, times a ratio from what is known of costs.

    Where groups keep a share of the channels that they have now. With the last channel of a block's
    groups all calls of the block go.
    """

    def __init__(
        self,
        programs: Tuned,
        groups: Sequence[ChannelGroup],
        widths: Mapping[str, int],
        costs: CallCosts,
        blocks: Sequence[Block] = (),
    ) -> None:
        """``programs`` are those of the network itself, ``widths`` the groups' widths in it,
        ``blocks`` those that may be taken out of it."""
        within = {layer: block.groups for block in blocks for layer in block.layers}
        shapes = shapes_of(programs.table)
        measured = {entry.task_id: entry.cost_ms for entry in programs.latencies}
        self._costs = costs
        self._widths = widths
        self._blocks = blocks
        self._all: list[_Site] = []
        self._of: dict[str, set[int]] = {group.group_id: set() for group in groups}
        for subgraph in programs.table.subgraphs:
            module = subgraph.module
            site = _Site(
                measured.get(subgraph.task_id, 0.0),
                shapes[subgraph.task_id],
                tuple(group for group in groups if module in group.producers),
                tuple(group for group in groups if module in group.consumers),
                within.get(module or "", ()),
            )
            for name in (*(g.group_id for g in (*site.computes, *site.reads)), *site.block):
                self._of[name].add(len(self._all))
            self._all.append(site)
        for block in reversed(blocks):
            if block.source:  # what reads the layer reads what it read, once it is gone
                self._of[block.source] |= self._of[block.groups[0]]

    def total_ms(self, shares: Mapping[str, float]) -> float:
        """All calls."""
        return self._sum(self._all, shares)

    def of_ms(self, groups: Iterable[str], shares: Mapping[str, float]) -> float:
        """The calls that compute or read these groups' channels, or are in their blocks."""
        found = sorted(set[int]().union(*(self._of[group] for group in groups)))
        return self._sum((self._all[site] for site in found), shares)

    def _sum(self, sites: Iterable[_Site], shares: Mapping[str, float]) -> float:
        seen = as_read(shares, self._widths, self._blocks)
        return sum(site.ms(self._costs, self._widths, shares, seen) for site in sites)
