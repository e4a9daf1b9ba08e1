"""The record store's layout, one migration for each version. Written once, never changed."""

from __future__ import annotations

LAYOUTS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE record (
            ordinal      INTEGER PRIMARY KEY AUTOINCREMENT,
            task_id      TEXT NOT NULL,
            device_model TEXT NOT NULL,
            conditions   TEXT NOT NULL,
            program_id   TEXT NOT NULL,
            verdict      INTEGER NOT NULL,
            bytes        INTEGER NOT NULL,
            used_at      REAL NOT NULL,
            program      TEXT NOT NULL,
            UNIQUE (task_id, device_model, conditions, program_id)
        )
        """,
        "CREATE INDEX record_by_use ON record (used_at, ordinal, bytes)",
        "CREATE TABLE total (records INTEGER NOT NULL, bytes INTEGER NOT NULL)",
        "INSERT INTO total VALUES (0, 0)",
        """
        CREATE TRIGGER record_added AFTER INSERT ON record
        BEGIN UPDATE total SET records = records + 1, bytes = bytes + new.bytes; END
        """,
        """
        CREATE TRIGGER record_changed AFTER UPDATE OF bytes ON record
        BEGIN UPDATE total SET bytes = bytes + new.bytes - old.bytes; END
        """,
        """
        CREATE TRIGGER record_removed AFTER DELETE ON record
        BEGIN UPDATE total SET records = records - 1, bytes = bytes - old.bytes; END
        """,
    ),
    (
        # Beside the records and not in them: whoever chooses samples reads no traces.
        """
        CREATE TABLE sample (
            ordinal    INTEGER PRIMARY KEY,
            target     TEXT NOT NULL,
            latency_ms REAL NOT NULL,
            bytes      INTEGER NOT NULL,
            features   BLOB NOT NULL
        )
        """,
        # A sample counts as part of its record, and goes with it.
        """
        CREATE TRIGGER sample_added AFTER INSERT ON sample
        BEGIN UPDATE record SET bytes = bytes + new.bytes WHERE ordinal = new.ordinal; END
        """,
        """
        CREATE TRIGGER sample_removed AFTER DELETE ON record
        BEGIN DELETE FROM sample WHERE ordinal = old.ordinal; END
        """,
    ),
    (
        # A hundred bytes for each task, which count for nothing beside its programs.
        """
        CREATE TABLE task (
            task_id      TEXT NOT NULL,
            device_model TEXT NOT NULL,
            conditions   TEXT NOT NULL,
            target       TEXT NOT NULL,
            kind         TEXT NOT NULL,
            macs         INTEGER NOT NULL,
            output_shape TEXT NOT NULL,
            latency_ms   REAL NOT NULL,
            PRIMARY KEY (task_id, device_model, conditions)
        ) WITHOUT ROWID
        """,
        # A task goes with the last of its programs.
        """
        CREATE TRIGGER task_forgotten AFTER DELETE ON record WHEN NOT EXISTS (
            SELECT 1 FROM record WHERE task_id = old.task_id
            AND device_model = old.device_model AND conditions = old.conditions
        )
        BEGIN
            DELETE FROM task WHERE task_id = old.task_id
            AND device_model = old.device_model AND conditions = old.conditions;
        END
        """,
    ),
)
