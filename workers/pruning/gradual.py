"""Deep cuts in several steps, the network trained at each width on the way.

The networks in between are never measured nor deployed, so their widths need not suit any program.
Pruning step by step loses less than pruning at once: Han et al., Learning both Weights and
Connections (NeurIPS 2015), section 3.4; Zhu and Gupta, To prune, or not to prune (2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from schemas.network import ChannelGroup


def widths_on_the_way(
    groups: Iterable[ChannelGroup],
    before: Mapping[str, int],
    after: Mapping[str, int],
    most_at_once: float,
) -> list[dict[str, int]]:
    """Group -> channels, of the groups that change, for each step from ``before`` to ``after``.

    A step takes at most the share ``most_at_once`` of the channels, as a geometric mean over all
    groups that can be pruned, and the same share of a group each time. A group that is not in
    ``before`` has all its channels there; one that is not in ``after`` stays as it is. One step at
    least, which may change nothing.
    """
    known = {group.group_id: group for group in groups if group.prunable}
    now = {name: before.get(name, group.channels) for name, group in known.items()}
    steps = _steps([after.get(name, width) / width for name, width in now.items()], most_at_once)
    found: list[dict[str, int]] = []
    for left in range(steps, 0, -1):
        changes: dict[str, int] = {}
        for name, width in now.items():
            end = after.get(name, width)
            divisor = known[name].divisor
            wanted = round(width * (end / width) ** (1 / left) / divisor) * divisor
            if (chosen := max(end, wanted)) != width:
                changes[name] = chosen
        now |= changes
        found.append(changes)
    return found


def _steps(ratios: list[float], most_at_once: float) -> int:
    if not ratios or most_at_once == 1.0:
        return 1
    kept = math.fsum(math.log(ratio) for ratio in ratios) / len(ratios)
    return max(1, math.ceil(kept / math.log1p(-most_at_once)))
