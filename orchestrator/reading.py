"""Reading outcomes by key and kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from schemas.base import Schema
from schemas.network import Sensitivity
from schemas.work import FineTuned, Outcome, Prepared, Screened, Tuned

Kind = TypeVar("Kind", bound=Schema)


def get(outcomes: Mapping[str, Outcome], key: str, kind: type[Kind]) -> Kind:
    """The outcome under a key, which is of this kind."""
    outcome = outcomes[key]
    if not isinstance(outcome, kind):
        raise TypeError(f"work {key[:12]} has an outcome {outcome.kind}, not {kind.__name__}")
    return outcome


def programs_of(outcomes: Mapping[str, Outcome], key: str) -> Tuned:
    """The programs a tuning or a screening found."""
    outcome = outcomes[key]
    if isinstance(outcome, Screened) and outcome.tuned is not None:
        return outcome.tuned
    return get(outcomes, key, Tuned)


def sensitivities_of(outcomes: Mapping[str, Outcome], key: str) -> tuple[Sensitivity, ...]:
    """Those of the network that a training made."""
    outcome = outcomes[key]
    if isinstance(outcome, Prepared):
        return outcome.sensitivities
    return get(outcomes, key, FineTuned).sensitivities
