"""How the final network's latency compares with the dense one's, and in which words.

Nothing is called faster or slower that the comparisons cannot tell from the dense network.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from orchestrator.wording import count
from schemas.network import Trained
from schemas.summary import SpeedupVerdict
from schemas.work import Exported

_NEARLY_ALIKE = 0.1
"""Of a ratio: how far two figures of it that name the same network as the faster one may differ."""


def is_dense(network: Trained, dense: Trained) -> bool:
    """Whether a network is the dense one itself: the same structure and the same weights."""
    return network.structure == dense.structure and network.weights == dense.weights


def verdict_of(exported: Exported, confidence: float, *, dense: bool) -> SpeedupVerdict | None:
    """What the export's comparisons tell; None without any. ``dense``: nothing was pruned."""
    ratios = exported.speedup_ratios
    if dense:
        return "dense"
    if not ratios:
        return None
    ratio = statistics.median(ratios)
    of_medians = exported.dense.latency.latency_ms / exported.final.latency.latency_ms
    agree = (of_medians - 1.0) * (ratio - 1.0) > 0.0
    allowed = max(interquartile_range(ratios), (_NEARLY_ALIKE if agree else 1e-6) * ratio)
    if abs(of_medians - ratio) > allowed:
        return "too_noisy"
    slowdown_low = lower_bound([1.0 / item for item in ratios], confidence)
    if ratio > 1.0 and (lower_bound(ratios, confidence) or 0.0) > 1.0:
        return "faster"
    if ratio < 1.0 and (slowdown_low or 0.0) > 1.0:
        return "slower"
    return "not_distinguishable"


def lower_bound(ratios: Sequence[float], confidence: float) -> float | None:
    """The one-sided lower confidence bound of the median of ``ratios``; None for too few.

    By order statistics (the sign test), so nothing is assumed of the distribution: the k-th
    smallest ratio, with the largest k for which fewer than k of n fair coins show heads with
    probability at most 1 - confidence.
    """
    number = len(ratios)
    below, rank = 0.0, 0
    for heads in range(number):
        below += math.comb(number, heads) / 2**number
        if below > 1.0 - confidence:
            break
        rank = heads + 1
    return sorted(ratios)[rank - 1] if rank else None


def interquartile_range(values: Sequence[float]) -> float:
    """The spread of the middle half of ``values``; 0 of a single one."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def in_words(verdict: SpeedupVerdict | None, ratio: float | None, comparisons: int) -> str:
    """The comparison with the dense network, for people; empty where there is none."""
    if verdict is None or (ratio is None and verdict != "dense"):
        return ""
    if ratio is None or verdict == "dense":
        return "no step was accepted: the result is the dense network"
    if verdict in ("faster", "slower"):
        factor, word = factor_of(ratio)
        return f"{factor} {word} the dense network" if factor else f"{word} the dense network"
    return f"{ratio:.2f}x, {remark(verdict, comparisons)}"


def factor_of(ratio: float) -> tuple[str, str]:
    """``2.46x`` and ``faster than``; no factor and ``as fast as`` where two digits tell nothing."""
    factor = f"{max(ratio, 1.0 / ratio):.2f}x"
    if factor == "1.00x":
        return "", "as fast as"
    return factor, "faster than" if ratio > 1.0 else "slower than"


def remark(verdict: SpeedupVerdict | None, comparisons: int) -> str:
    """What has to stand beside a figure that is not beyond the noise; empty beside others."""
    behind = f"({count(comparisons, 'comparison')})"
    if verdict == "not_distinguishable":
        return f"not distinguishable from the dense network {behind}"
    return f"too noisy to tell {behind}" if verdict == "too_noisy" else ""
