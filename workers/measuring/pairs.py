"""How many pairs of latencies a comparison takes: as many as the device's noise asks for.

After the least number, more pairs are taken until the standard error of their mean log-ratio is
small enough, the most are taken, or time is up. Whether to go on depends on the scatter, never on
which of the two is ahead, so that the verdict's confidence is not spent by looking (Stein's
two-stage procedure, Annals of Mathematical Statistics 16, 1945, taken pair by pair).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

STANDARD_ERROR = 0.0125
"""Small enough: the gate finds a gain of 5 % in nine of ten comparisons with its defaults, since
log(0.99 / 0.95) = 0.041 is 3.3 times as much, and 1.9 + 1.3 standard errors are needed (one-sided
97 %, and 90 % of the time)."""


def take_pairs(
    time_ms: Callable[[int], float],
    least: int,
    most: int,
    within_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[float], list[float]]:
    """Latencies in ms of the reference (0) and the candidate (1), which ``time_ms`` times.

    The two take turns at going first, so that what drifts meets both alike. No pair beyond the
    ``least`` is begun later than ``within_s`` seconds after the start: a session's lease ends.
    """
    times: tuple[list[float], list[float]] = ([], [])
    logs: list[float] = []
    until = clock() + within_s
    while len(logs) < least or (
        len(logs) < most and standard_error(logs) > STANDARD_ERROR and clock() < until
    ):
        for which in (0, 1) if len(logs) % 2 == 0 else (1, 0):
            times[which].append(time_ms(which))
        logs.append(math.log(times[1][-1] / times[0][-1]))
    return times


def standard_error(values: Sequence[float]) -> float:
    """Of their mean; infinite for fewer than two."""
    count = len(values)
    if count < 2:
        return math.inf
    mean = sum(values) / count
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
