"""Deep cuts in several steps, the network trained at each width on the way.

The networks in between are never measured nor deployed, so their widths need not suit any program.
Pruning step by step loses less than pruning at once: Han et al., Learning both Weights and
Connections (NeurIPS 2015), section 3.4; Zhu and Gupta, To prune, or not to prune (2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from schemas.network import ChannelGroup


def steps_for(macs_before: int, macs_after: int, most_at_once: float) -> int:
    """In how many steps a cut is made, each of which takes the same share of the multiplications,
    at most ``most_at_once``. One at least."""
    if most_at_once == 1.0 or not 0 < macs_after < macs_before:
        return 1
    return math.ceil(math.log(macs_after / macs_before) / math.log1p(-most_at_once))


def widths_on_the_way(
    groups: Iterable[ChannelGroup], before: Mapping[str, int], after: Mapping[str, int], steps: int
) -> list[dict[str, int]]:
    """Group -> channels, of the groups that change, for each step from ``before`` to ``after``.

    Each step takes the same share of a group, as near as whole multiples of its divisor allow. A
    group that is not in ``before`` has all its channels there; one that is not in ``after`` stays.
    A block is taken out in the first step.
    """
    known = {group.group_id: group for group in groups if group.prunable}
    now = {name: before.get(name, group.channels) for name, group in known.items()}
    found: list[dict[str, int]] = []
    for left in range(steps, 0, -1):
        changes: dict[str, int] = {}
        for name, width in now.items():
            if not width:
                continue
            end = after.get(name, width)
            divisor = known[name].divisor
            wanted = round(width * (end / width) ** (1 / left) / divisor) * divisor
            if (chosen := max(end, wanted)) != width:
                changes[name] = chosen
        now |= changes
        found.append(changes)
    return found
