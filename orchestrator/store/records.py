"""The record store: programs that were measured once, for every run on this machine or cluster.

One SQLite file that several runs read and write at once. It is a cache: a run copies what it takes
into its own ledger, and goes on without the store when that cannot be used.

A record is known by its task (workload and target), the device model, the program, and the
conditions: the compiler's versions and our code around it, since a trace names the blocks and loops
that they make; and how programs are timed, since a run compares the records of a task with each
other.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from pydantic import ValidationError

from orchestrator.store import known_tasks
from orchestrator.store import samples as sample_table
from orchestrator.store.record_layout import LAYOUTS
from orchestrator.store.sqlite_file import transaction
from schemas.config import MeasureConfig, RecordsConfig
from schemas.table import SHARED_BATCH, KnownTask, Program, Sample

BUSY_TIMEOUT_S = 20.0
TOOLS = ("apache-tvm", "apache-tvm-ffi")
_COMPILING = "workers.compiling"
_KEPT_SHARE = 0.9  # of the limit, once it is passed: making room is not for every record
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class RecordsUnusable(RuntimeError):
    """The record store cannot be used now; the text names the file and the reason."""


class RecordsBroken(RecordsUnusable):
    """Nor will it be usable later: the file is damaged, or another version's."""


def store_path(config: RecordsConfig | None = None) -> Path:
    """Where the store lies, absolute. Raises ``RecordsUnusable`` for a user without a home."""
    try:
        if config is not None and config.path is not None:
            return Path(config.path).expanduser().absolute()
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # A relative one is to be ignored, by the XDG base directory specification.
        folder = cache if cache.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise RecordsUnusable(f"the record store has no place: {error}") from error
    return folder / "cprune" / "records.sqlite"


def conditions_of(config: MeasureConfig) -> str:
    """What two records must have in common to be compared."""
    versions = [f"{name} {_version(name)}" for name in TOOLS]
    timing = f"{config.program_repeats} repeats of {config.program_min_repeat_ms} ms or more"
    return ", ".join([*versions, f"{_COMPILING} {_digest_of_code(_COMPILING)}", timing])


def is_shareable(program: Program) -> bool:
    """Whether another run may take the program as it is.

    Measured on a device, or condemned there by its result, which would be the same elsewhere.
    Other failures are not shared. A ledger keeps no more of one than its text, which does not tell
    what the compiler would refuse again from a build that took too long on a busy machine, a full
    disk or a lost device; and failing once more costs a fraction of a second.
    """
    if program.measurement is not None:
        return not program.measurement.simulated
    return program.is_condemned


class RecordStore:
    """The store as one run uses it. Every method raises ``RecordsUnusable``, and changes nothing
    when it does."""

    def __init__(self, path: Path, max_bytes: float, conditions: str) -> None:
        """Open the store; make it, and the folders above it, where there is none."""
        self.path = path
        self._max_bytes = max_bytes
        self._conditions = conditions
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def take(self, task_ids: Sequence[str], device_model: str) -> list[Program]:
        """The programs of these tasks, in the order in which they were first added."""
        found: list[tuple[int, str]] = []
        key = "task_id = ? AND device_model = ? AND conditions = ?"
        with self._transaction():
            for task_id in dict.fromkeys(task_ids):
                values = (task_id, device_model, self._conditions)
                rows = self._db.execute(f"SELECT ordinal, program FROM record WHERE {key}", values)
                found += rows.fetchall()
                self._db.execute(
                    f"UPDATE record SET used_at = ? WHERE {key}", (time.time(), *values)
                )
        try:
            programs = [Program.model_validate_json(text) for _, text in sorted(found)]
        except ValidationError as error:
            raise RecordsBroken(
                f"the record store {self.path} holds what this cprune cannot read: "
                f"{error.errors()[0]['msg']}"
            ) from error
        return [
            program.model_copy(update={"batch": SHARED_BATCH, "position": position})
            for position, program in enumerate(programs)
        ]

    def keep(self, programs: Sequence[Program]) -> None:
        """Add the programs that may be shared, or the verdict on those that are here already.

        The first verdict on a program's outputs is final.
        """
        rows = [self._row(program) for program in programs if is_shareable(program)]
        if not rows:
            return
        with self._transaction():
            self._db.executemany(
                """
                INSERT INTO record (
                    task_id, device_model, conditions, program_id, verdict, bytes, used_at, program
                ) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET
                    verdict = excluded.verdict, used_at = excluded.used_at,
                    program = excluded.program, bytes = excluded.bytes + ifnull(
                        (SELECT bytes FROM sample WHERE sample.ordinal = record.ordinal), 0
                    )
                WHERE record.verdict = 0 AND excluded.verdict > 0
                """,
                rows,
            )
            room_made = self._make_room()
        if room_made:
            self._shrink()

    def take_samples(
        self, device_model: str, target: str, without: Collection[str]
    ) -> list[Sample]:
        """What a cost model begins with: samples of other tasks than those in ``without``."""
        with self._transaction():  # of what it has found nothing may be removed meanwhile
            return sample_table.take(self._db, self._conditions, device_model, target, without)

    def keep_samples(self, samples: Sequence[Sample]) -> None:
        """Add samples of programs that are here; those of others are left out."""
        with self._transaction():
            sample_table.keep(self._db, self._conditions, samples)
            room_made = self._make_room()
        if room_made:
            self._shrink()

    def take_tasks(
        self, device_model: str, target: str, without: Collection[str]
    ) -> list[KnownTask]:
        """What a model of latencies begins with: other tasks than those in ``without``."""
        with self._transaction():
            return known_tasks.take(self._db, self._conditions, device_model, target, without)

    def keep_tasks(self, device_model: str, target: str, tasks: Sequence[KnownTask]) -> None:
        """Add tasks that have programs here; those of others are left out."""
        with self._transaction():
            known_tasks.keep(self._db, self._conditions, device_model, target, tasks)

    def extent(self) -> tuple[int, int]:
        """Records and tasks in the store, of all conditions."""
        with self._errors():
            records = self._db.execute("SELECT records FROM total").fetchone()[0]
            tasks = self._db.execute(
                "SELECT count(*) FROM (SELECT DISTINCT task_id, device_model FROM record)"
            ).fetchone()[0]
        return records, tasks

    def clear(self) -> None:
        """Remove every record; runs that use the store meanwhile do not mind."""
        with self._transaction():
            self._db.execute("DELETE FROM record")
        self._shrink()

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        self._db.close()

    def _prepare(self) -> None:
        """Bring the file to this layout; several processes may try at once."""
        until = time.monotonic() + BUSY_TIMEOUT_S
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        while True:
            try:
                mode = self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:  # SQLite does not wait for this one itself
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        if mode != "wal":
            raise RecordsUnusable(f"the file system of {self.path} holds no write-ahead log")
        # A power cut may cost the last records, which other runs then measure again.
        self._db.execute("PRAGMA synchronous=NORMAL")
        if self._layout() < len(LAYOUTS):
            with self._transaction():
                for number in range(self._layout(), len(LAYOUTS)):
                    for statement in LAYOUTS[number]:
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version={number + 1}")
        if self._layout() != len(LAYOUTS):
            raise RecordsBroken(
                f"the record store {self.path} has layout {self._layout()}, which this cprune does "
                "not know"
            )

    def _layout(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _row(self, program: Program) -> tuple[object, ...]:
        # Where in its run a program was measured, and inside which network, says nothing to others.
        bare = program.model_copy(update={"batch": "", "position": 0, "inside_ms": None})
        text = bare.model_dump_json()
        verdict = 2 if program.is_condemned else int(program.max_abs_error is not None)
        key = (program.task_id, program.device_model, self._conditions, program.program_id)
        size = len(text.encode()) + 2 * sum(map(len, key))  # the key lies in an index too
        return (*key, verdict, size, time.time(), text)

    def _make_room(self) -> bool:
        """Once the limit is passed, remove what was not used for the longest time."""
        size = self._db.execute("SELECT bytes FROM total").fetchone()[0]
        if size <= self._max_bytes:
            return False
        excess = size - _KEPT_SHARE * self._max_bytes
        self._db.execute(
            """
            DELETE FROM record WHERE ordinal IN (
                SELECT ordinal FROM (
                    SELECT ordinal, sum(bytes) OVER (ORDER BY used_at, ordinal) - bytes AS before
                    FROM record
                ) WHERE before < ?
            )
            """,
            (excess,),
        )
        return True

    def _shrink(self) -> None:
        """Give what the records took back to the disk."""
        with self._errors():
            self._db.executescript("PRAGMA incremental_vacuum")  # execute() frees one page alone

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors(), transaction(self._db):
            yield

    def _errors(self) -> AbstractContextManager[None]:
        return _errors_of(self.path)


def copy_store(path: Path, to: Path) -> None:
    """Make ``to`` hold what the store at ``path`` holds, and nothing else.

    Either may be in use; whoever reads ``to`` finds all of it or what was there before. Raises
    ``RecordsUnusable``.
    """
    with _errors_of(path):
        source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        with closing(source), closing(sqlite3.connect(to, timeout=BUSY_TIMEOUT_S)) as copy:
            source.backup(copy)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        broken = getattr(error, "sqlite_errorcode", None) in _BROKEN
        kind = RecordsBroken if broken else RecordsUnusable
        raise kind(f"the record store {path} cannot be used: {error}") from error
    except OSError as error:
        why = f"{error.strerror or error}: {error.filename}"
        raise RecordsUnusable(f"the record store {path} cannot be used: {why}") from error


@functools.cache
def _digest_of_code(package: str) -> str:
    """What the package's files hold; it is not imported, nor what it needs."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    (folder,) = spec.submodule_search_locations
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.py")):
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
