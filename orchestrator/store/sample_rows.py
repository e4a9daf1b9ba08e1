"""The rows of a ledger that hold what its run's cost models began with."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from schemas.table import Sample


def is_noted(db: sqlite3.Connection, device_model: str, target: str) -> bool:
    """Whether it was noted what the cost model begins with."""
    statement = "SELECT 1 FROM sampled WHERE device_model = ? AND target IN (?, '')"
    return db.execute(statement, (device_model, target)).fetchone() is not None


def note(db: sqlite3.Connection, device_model: str, target: str, samples: Sequence[Sample]) -> None:
    """Note what the cost model begins with, within the caller's transaction."""
    db.execute("INSERT INTO sampled VALUES (?, ?)", (device_model, target))
    db.executemany(
        "INSERT INTO sample (device_model, target, task_id, program_id, latency_ms, features) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [
            (device_model, target, one.task_id, one.program_id, one.latency_ms, one.features)
            for one in samples
        ],
    )


def noted(db: sqlite3.Connection, device_model: str, target: str) -> list[Sample]:
    """The samples that were noted, in their order."""
    rows = db.execute(
        "SELECT task_id, program_id, latency_ms, features FROM sample "
        "WHERE device_model = ? AND target = ? ORDER BY ordinal",
        (device_model, target),
    )
    return [
        Sample(
            task_id=task_id,
            program_id=program_id,
            device_model=device_model,
            target=target,
            latency_ms=latency_ms,
            features=features,
        )
        for task_id, program_id, latency_ms, features in rows
    ]
