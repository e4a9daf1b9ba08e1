"""Samples in the record store: the features of its programs, from which cost models learn.

A run's cost model begins with samples of other tasks than its own: other networks', and the same
network's at other widths.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence

from schemas.table import Sample

MOST_SAMPLES = 512
"""As many as train in a small part of the time that a round takes (docs/tuning.md)."""
_LEAST_SHARE = 32  # of one task: fewer say little of what makes a program of it fast
_LEAST_PROGRAMS = 2  # of one task: a program alone is the fastest and the slowest
_TARGET_BYTES = 64


def keep(db: sqlite3.Connection, conditions: str, samples: Sequence[Sample]) -> None:
    """Add the samples of programs that are in the store; one that is there stays as it is."""
    db.executemany(
        """
        INSERT INTO sample (ordinal, target, latency_ms, bytes, features)
        SELECT ordinal, ?, ?, ?, ? FROM record
        WHERE task_id = ? AND device_model = ? AND conditions = ? AND program_id = ?
        ON CONFLICT DO NOTHING
        """,
        [
            (
                one.target,
                one.latency_ms,
                len(one.features) + _TARGET_BYTES,
                one.features,
                one.task_id,
                one.device_model,
                conditions,
                one.program_id,
            )
            for one in samples
        ],
    )


def take(
    db: sqlite3.Connection,
    conditions: str,
    device_model: str,
    target: str,
    without: Collection[str],
) -> list[Sample]:
    """At most ``MOST_SAMPLES`` of other tasks than those in ``without``."""
    tasks = db.execute(
        "SELECT task_id, max(used_at) AS used FROM record "
        "WHERE device_model = ? AND conditions = ? GROUP BY task_id ORDER BY used DESC, task_id",
        (device_model, conditions),
    ).fetchall()
    known = (
        _programs(db, conditions, device_model, target, task_id)
        for task_id, _ in tasks
        if task_id not in without
    )
    return [
        Sample(
            task_id=task_id,
            program_id=program_id,
            device_model=device_model,
            target=target,
            latency_ms=latency_ms,
            features=db.execute(
                "SELECT features FROM sample WHERE ordinal = ?", (ordinal,)
            ).fetchone()[0],
        )
        for latency_ms, program_id, task_id, ordinal in chosen(known, MOST_SAMPLES)
    ]


_Ranked = tuple[float, str, str, int]
"""Latency in ms, program, task, and the record's number: in their order, fastest first."""


def chosen(tasks: Iterable[Sequence[_Ranked]], limit: int) -> list[_Ranked]:
    """At most ``limit`` programs of the first tasks that have several.

    Of each task at most an equal share: the fastest one, since the others' latencies are seen
    relative to it, and a spread of the others. ``tasks`` is read no further than needed.
    """
    first: list[Sequence[_Ranked]] = []
    room, coming = limit, iter(tasks)
    while room > 0 and (programs := next(coming, None)) is not None:
        if len(programs) >= _LEAST_PROGRAMS:
            first.append(programs)
            room -= min(len(programs), _LEAST_SHARE)
    share = max(_LEAST_SHARE, limit // max(1, len(first)))
    return [one for programs in first for one in spread(sorted(programs), share)][:limit]


def spread(ranked: Sequence[_Ranked], count: int) -> list[_Ranked]:
    """``count`` of them, from the first to the last in steps as equal as can be."""
    if len(ranked) <= count:
        return list(ranked)
    step = (len(ranked) - 1) / (count - 1)
    return [ranked[round(number * step)] for number in range(count)]


def _programs(
    db: sqlite3.Connection, conditions: str, device_model: str, target: str, task_id: str
) -> list[_Ranked]:
    """The task's programs that have a sample, but for those that were found to be wrong."""
    return db.execute(
        "SELECT latency_ms, program_id, task_id, ordinal FROM record JOIN sample USING (ordinal) "
        "WHERE task_id = ? AND device_model = ? AND conditions = ? AND target = ? AND verdict < 2",
        (task_id, device_model, conditions, target),
    ).fetchall()
