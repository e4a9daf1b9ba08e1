"""What a step of the state machine takes besides its state, and what it returns."""

from __future__ import annotations

from pydantic import Field

from orchestrator.states import AnyState
from schemas.base import Schema


class IllegalTransition(RuntimeError):
    """A transition that is not declared."""


class Clock(Schema):
    """The time a step may know of."""

    wall_s: float = Field(ge=0.0, description="Seconds the run was worked on, all starts together.")


class Transition(Schema):
    """The next state, and one line for people."""

    next_state: AnyState
    message: str
