"""The ledger as one SQLite file: write-ahead log, every commit flushed to the disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.states import STATE, AnyState
from orchestrator.store import sample_rows
from orchestrator.store.base import (
    Event,
    Ledger,
    LedgerError,
    LedgerFull,
    RunInfo,
    StaleSequence,
    Standing,
    repeats,
)
from orchestrator.store.migrations import MIGRATIONS
from orchestrator.store.sqlite_file import (
    BUSY_TIMEOUT_S,
    connect_for_reading,
    damaged,
    means_damage,
    text_of,
    transaction,
    version_of,
)
from schemas.config import RunConfig
from schemas.record import WorkRecord
from schemas.table import WRONG_RESULT, Program, Sample
from schemas.work import Outcome, Work

_CHUNK = 500  # parameters of one statement

_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
_WORK: TypeAdapter[Work] = TypeAdapter(Work)


class SqliteLedger(Ledger):
    """The contract of ``Ledger`` on a local file. ``read_only`` needs an existing one."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self._db = connect_for_reading(path) if read_only else self._open(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        self._db = db
        with self._errors():
            mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise LedgerError(
                    f"the file system of {path} cannot hold a write-ahead log: name a folder on a "
                    "local disk in output"
                )
            db.execute("PRAGMA synchronous=FULL")
            version = version_of(db)
            if version > len(MIGRATIONS):
                raise LedgerError(
                    f"{path} was written by a newer cprune (layout {version}): install that one"
                )
            for number in range(version, len(MIGRATIONS)):
                with self._transaction():
                    for statement in MIGRATIONS[number]:
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={number + 1}")
        return db

    def start(self, start_id: str, config: RunConfig, versions: dict[str, str]) -> RunInfo:
        text = text_of(config)
        with self._transaction():
            self._db.execute(
                """
                INSERT INTO run VALUES (1, ?, ?, ?, 1, 0.0)
                ON CONFLICT (id) DO UPDATE SET
                    started = started + (start_id <> excluded.start_id),
                    start_id = excluded.start_id, config = excluded.config,
                    versions = excluded.versions
                """,
                (start_id, text, json.dumps(versions)),
            )
        info = self.info()
        assert info is not None
        return info

    def info(self) -> RunInfo | None:
        row = self._one("SELECT config, versions, started, wall_s FROM run")
        if row is None:
            return None
        with self._errors():
            return RunInfo(
                config=RunConfig.model_validate_json(row[0]),
                versions=json.loads(row[1]),
                started=row[2],
                wall_s=row[3],
            )

    def keep_time(self, wall_s: float) -> None:
        with self._transaction():
            self._keep_time(wall_s)

    def _keep_time(self, wall_s: float) -> None:
        self._db.execute("UPDATE run SET wall_s = max(wall_s, ?)", (wall_s,))

    def transition(
        self, target: str, expected: int, state: AnyState, message: str, at: float, wall_s: float
    ) -> int:
        text = state.model_dump_json()
        with self._transaction():
            current = self._standing(target)
            repeated = repeats(current, target, expected, state)
            if repeated:
                return repeated.sequence
            sequence = self._db.execute(
                "INSERT INTO event (at, wall_s, target, kind, message, state) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (at, wall_s, target, state.kind, message, text),
            ).lastrowid
            assert sequence is not None
            changed = self._db.execute(
                """
                INSERT INTO target (name, sequence, previous, state) VALUES (?, ?, ?, ?)
                ON CONFLICT (name) DO UPDATE SET
                    sequence = excluded.sequence, previous = excluded.previous,
                    state = excluded.state
                WHERE target.sequence = excluded.previous
                """,
                (target, sequence, expected, text),
            )
            if changed.rowcount != 1:
                raise StaleSequence(f"{target} is no longer at event {expected}")
            self._keep_time(wall_s)
        return sequence

    def _standing(self, target: str) -> Standing | None:
        row = self._one("SELECT name, sequence, previous, state FROM target WHERE name = ?", target)
        with self._errors():
            return None if row is None else _standing(row)

    def standings(self) -> dict[str, Standing]:
        rows = self._all("SELECT name, sequence, previous, state FROM target ORDER BY rowid")
        with self._errors():
            return {row[0]: _standing(row) for row in rows}

    def events(self, after: int = 0) -> list[Event]:
        names = ("sequence", "at", "wall_s", "target", "kind", "message")
        rows = self._all(
            f"SELECT {', '.join(names)} FROM event WHERE sequence > ? ORDER BY sequence", after
        )
        with self._errors():
            return [Event.model_validate(dict(zip(names, row, strict=True))) for row in rows]

    def add_work(self, *records: WorkRecord) -> int:
        rows = [
            (
                record.work.key,
                record.work.model_dump_json(),
                record.outcome.model_dump_json(),
                record.seconds,
                record.finished_at,
            )
            for record in records
        ]
        with self._transaction():
            added = self._db.executemany(
                "INSERT INTO work (key, work, outcome, seconds, finished_at) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )
        return added.rowcount

    def finished_keys(self) -> set[str]:
        return {row[0] for row in self._all("SELECT key FROM work")}

    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        rows = self._among("SELECT key, outcome FROM work WHERE key IN ({})", keys)
        with self._errors():
            return {row[0]: _OUTCOME.validate_json(row[1]) for row in rows}

    def all_work(self) -> list[WorkRecord]:
        rows = self._all("SELECT work, outcome, seconds, finished_at FROM work ORDER BY ordinal")
        with self._errors():
            return [
                WorkRecord(
                    work=_WORK.validate_json(row[0]),
                    outcome=_OUTCOME.validate_json(row[1]),
                    seconds=row[2],
                    finished_at=row[3],
                )
                for row in rows
            ]

    def programs(self, task_ids: list[str], device_model: str) -> list[Program]:
        rows = self._among(
            "SELECT ordinal, program FROM program WHERE device_model = ? AND task_id IN ({})",
            task_ids,
            device_model,
        )
        with self._errors():
            return [Program.model_validate_json(row[1]) for row in sorted(rows)]

    def add_programs(self, programs: Sequence[Program]) -> None:
        with self._transaction():
            self._insert(programs)

    def _insert(self, programs: Sequence[Program]) -> None:
        rows = [
            (item.program_id, item.device_model, item.task_id, item.model_dump_json())
            for item in programs
        ]
        self._db.executemany(
            "INSERT INTO program (program_id, device_model, task_id, program) "
            "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            rows,
        )

    def record_check(self, program: Program) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE program SET program = ? WHERE program_id = ? AND device_model = ?",
                (program.model_dump_json(), program.program_id, program.device_model),
            )

    def condemned(self) -> list[Program]:
        rows = self._all(
            "SELECT program FROM program WHERE json_extract(program, '$.error') LIKE ? || '%' "
            "ORDER BY ordinal",
            WRONG_RESULT,
        )
        with self._errors():
            return [Program.model_validate_json(row[0]) for row in rows]

    def samples(self, device_model: str, target: str) -> list[Sample]:
        with self._errors():
            return sample_rows.noted(self._db, device_model, target)

    def keep_samples(self, device_model: str, target: str, samples: Sequence[Sample]) -> None:
        with self._transaction():
            if not sample_rows.is_noted(self._db, device_model, target):
                sample_rows.note(self._db, device_model, target, samples)

    def close(self) -> None:
        self._db.close()

    # --------------------------------------------------------------------------- statements

    def _one(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        rows = self._all(statement, *values)
        return rows[0] if rows else None

    def _all(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(statement, values).fetchall()

    def _among(
        self, statement: str, keys: Collection[str], *values: object
    ) -> list[tuple[Any, ...]]:
        """A statement over many keys, in chunks that SQLite takes."""
        wanted, rows = list(dict.fromkeys(keys)), []
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            marks = ", ".join("?" * len(chunk))
            rows += self._all(statement.format(marks), *values, *chunk)
        return rows

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors(), transaction(self._db):
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise LedgerFull(
                    f"the disk that holds {self.path} is full: free some space and run the same "
                    "command again, nothing recorded so far is lost"
                ) from error
            if means_damage(error):
                raise damaged(self.path, error) from error
            raise LedgerError(f"the ledger {self.path} cannot be used: {error}") from error
        except (ValidationError, json.JSONDecodeError) as error:
            raise damaged(self.path, error) from error


def _standing(row: Sequence[object]) -> Standing:
    return Standing.model_validate(
        {
            "target": row[0],
            "sequence": row[1],
            "previous": row[2],
            "state": STATE.validate_json(str(row[3])),
        }
    )
