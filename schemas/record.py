"""What a run folder's ledger says, read without Ray: the source of status and report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Schema
from schemas.config import RunConfig
from schemas.network import Trained
from schemas.table import Comparison, Program
from schemas.work import Candidate, Outcome, Work

RunState = Literal["running", "done", "failed", "cancelled"]


class StepRecord(Schema):
    """One candidate that was decided upon, in the order of the decisions."""

    round: int = Field(ge=1)
    candidate: Candidate
    parent_ms: float | None = Field(description="Sum of the parent's programs.")
    screened_ms: float | None = Field(description="Sum of the candidate's programs.")
    val_accuracy: float | None
    comparison: Comparison | None = Field(description="Parent (reference) against candidate.")
    accepted: bool
    reason: str


class WorkRecord(Schema):
    """One finished unit of work."""

    work: Work
    outcome: Outcome
    finished_at: float = Field(description="Seconds since the epoch.")
    seconds: float = Field(ge=0.0, description="Its share, where several were done together.")


class EventRecord(Schema):
    """One transition of one target's state machine."""

    sequence: int
    at: float = Field(description="Seconds since the epoch.")
    target: str
    state: str
    message: str


class TargetRecord(Schema):
    """Where one target's state machine stands."""

    target: str
    state: str
    accuracy_floor: float | None
    current: Trained | None = Field(description="The network the accepted steps led to.")
    final: Trained | None
    steps: tuple[StepRecord, ...]
    stopped_by: str
    searched_s: float = Field(
        default=0.0, description="Wall-clock seconds of the search loop, once it has ended."
    )


class RunRecord(Schema):
    """A run, as its ledger tells it."""

    config: RunConfig
    state: RunState
    error: str
    wrong_input: bool = Field(
        default=False, description="Whether all that failed did so by what the user gave."
    )
    started: int
    wall_s: float
    phases_s: dict[str, float]
    versions: dict[str, str]
    targets: tuple[TargetRecord, ...]
    work: tuple[WorkRecord, ...]
    condemned: tuple[Program, ...] = Field(
        default=(), description="Programs that computed something else than their task."
    )
    events: tuple[EventRecord, ...]
