"""The ledger file's layout, one migration for each version. Written once, never changed."""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE run (
            id       INTEGER PRIMARY KEY CHECK (id = 1),
            start_id TEXT NOT NULL,
            config   TEXT NOT NULL,
            digest   TEXT NOT NULL,
            versions TEXT NOT NULL,
            started  INTEGER NOT NULL,
            wall_s   REAL NOT NULL
        )
        """,
        """
        CREATE TABLE event (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            at       REAL NOT NULL,
            wall_s   REAL NOT NULL,
            target   TEXT NOT NULL,
            kind     TEXT NOT NULL,
            message  TEXT NOT NULL,
            state    TEXT NOT NULL
        )
        """,
        """
        CREATE TRIGGER event_is_final BEFORE UPDATE ON event
        BEGIN SELECT RAISE(ABORT, 'events are only appended'); END
        """,
        """
        CREATE TRIGGER event_is_kept BEFORE DELETE ON event
        BEGIN SELECT RAISE(ABORT, 'events are only appended'); END
        """,
        """
        CREATE TABLE target (
            name     TEXT PRIMARY KEY,
            sequence INTEGER NOT NULL,
            previous INTEGER NOT NULL,
            state    TEXT NOT NULL
        )
        """,
        """
        CREATE TABLE work (
            ordinal     INTEGER PRIMARY KEY AUTOINCREMENT,
            key         TEXT NOT NULL UNIQUE,
            work        TEXT NOT NULL,
            outcome     TEXT NOT NULL,
            seconds     REAL NOT NULL,
            finished_at REAL NOT NULL
        )
        """,
        """
        CREATE TABLE program (
            ordinal      INTEGER PRIMARY KEY AUTOINCREMENT,
            program_id   TEXT NOT NULL,
            device_model TEXT NOT NULL,
            task_id      TEXT NOT NULL,
            program      TEXT NOT NULL,
            UNIQUE (program_id, device_model)
        )
        """,
        "CREATE INDEX program_by_task ON program (task_id, device_model)",
    ),
    (
        """
        CREATE TABLE asked (
            task_id      TEXT NOT NULL,
            device_model TEXT NOT NULL,
            PRIMARY KEY (task_id, device_model)
        ) WITHOUT ROWID
        """,
        # A run that was begun before records were shared goes on with what it knew.
        "INSERT INTO asked SELECT DISTINCT task_id, device_model FROM program",
    ),
    (
        """
        CREATE TABLE sample (
            ordinal      INTEGER PRIMARY KEY AUTOINCREMENT,
            device_model TEXT NOT NULL,
            target       TEXT NOT NULL,
            task_id      TEXT NOT NULL,
            program_id   TEXT NOT NULL,
            latency_ms   REAL NOT NULL,
            features     BLOB NOT NULL
        )
        """,
        # A target of '' stands for all of them.
        """
        CREATE TABLE sampled (
            device_model TEXT NOT NULL,
            target       TEXT NOT NULL,
            PRIMARY KEY (device_model, target)
        ) WITHOUT ROWID
        """,
        # A run whose cost model began with nothing goes on so.
        "INSERT INTO sampled SELECT DISTINCT device_model, '' FROM asked",
    ),
    ("ALTER TABLE run DROP COLUMN digest",),
)
