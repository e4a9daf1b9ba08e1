"""Tasks in the record store: what one call of each takes, for models of latency in other runs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence

from schemas.table import KnownTask

MOST_TASKS = 512
"""Those of some twenty networks: a model of latency trains on them in a tenth of a second."""


def keep(
    db: sqlite3.Connection,
    conditions: str,
    device_model: str,
    target: str,
    tasks: Sequence[KnownTask],
) -> None:
    """Add the tasks that have a program in the store, or what is less now than it was known."""
    db.executemany(
        """
        INSERT INTO task (
            task_id, device_model, conditions, target, kind, macs, output_shape, latency_ms
        ) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS (
            SELECT 1 FROM record WHERE task_id = ?1 AND device_model = ?2 AND conditions = ?3
        ) ON CONFLICT DO UPDATE SET latency_ms = min(latency_ms, excluded.latency_ms)
        """,
        [
            (
                one.task_id,
                device_model,
                conditions,
                target,
                one.kind,
                one.macs,
                json.dumps(one.output_shape),
                one.latency_ms,
            )
            for one in tasks
        ],
    )


def take(
    db: sqlite3.Connection,
    conditions: str,
    device_model: str,
    target: str,
    without: Collection[str],
) -> list[KnownTask]:
    """At most ``MOST_TASKS`` that are not in ``without``, those used last."""
    rows = db.execute(
        """
        SELECT task_id, kind, macs, output_shape, latency_ms, (
            SELECT max(used_at) FROM record WHERE record.task_id = task.task_id
            AND record.device_model = task.device_model AND record.conditions = task.conditions
        ) AS used FROM task WHERE device_model = ? AND conditions = ? AND target = ?
        ORDER BY used DESC, task_id
        """,
        (device_model, conditions, target),
    )
    others = (row for row in rows if row[0] not in without)
    return [
        KnownTask(
            task_id=task_id,
            kind=kind,
            macs=macs,
            output_shape=tuple(json.loads(shape)),
            latency_ms=latency_ms,
        )
        for (task_id, kind, macs, shape, latency_ms, _), _ in zip(
            others, range(MOST_TASKS), strict=False
        )
    ]
