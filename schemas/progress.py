"""How far a training is, as it tells and as others read of it."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Schema


class ProgressEvent(Schema):
    """In batch ``batch`` of ``batches`` of epoch ``epoch`` of ``epochs``."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float = Field(description="Of the last batch.")
    val_accuracy: float | None = Field(description="Of the last finished epoch.")
    elapsed_s: float


class ToldProgress(ProgressEvent):
    """What a worker writes below ``RUN_DIR/progress``, one file for each training."""

    what: str = Field(description="Kind of the unit of work.")
