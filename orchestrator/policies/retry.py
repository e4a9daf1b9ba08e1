"""Whether failed work is tried again: a budget of its own for each class of failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from schemas.base import Schema

FailureClass = Literal[
    "worker_lost", "device_lost", "timed_out", "user_error", "system_error", "internal_error"
]

MAX_RETRIES: Mapping[FailureClass, int] = {
    "worker_lost": 3,
    "device_lost": 2,
    "timed_out": 0,
    "user_error": 0,
    "system_error": 0,
    "internal_error": 0,
}
"""Retries of one unit of work in one start of the run. What a user must mend is never retried."""

RETRY_DELAY_S: Mapping[FailureClass, float] = {"worker_lost": 1.0, "device_lost": 5.0}


class Failure(Schema):
    """Why work has no outcome."""

    kind: FailureClass
    message: str


class RetryDecision(Schema):
    """Whether to try again, when, and one line for people."""

    again: bool
    delay_s: float
    message: str


def decide(failure: Failure, count: int) -> RetryDecision:
    """What follows the ``count``-th failure of this class of one unit of work."""
    most = MAX_RETRIES[failure.kind]
    again = count <= most
    words = failure.kind.replace("_", " ")
    told = f"{words}: {failure.message}"
    if most:
        told += f" ({'tried again' if again else 'given up'}: {min(count, most)} (max {most}))"
    return RetryDecision(
        again=again,
        delay_s=RETRY_DELAY_S.get(failure.kind, 0.0) * count,
        message=told,
    )
