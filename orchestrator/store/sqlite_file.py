"""An SQLite file: its transactions, and what may be wrong with a ledger's.

It may be damaged, it may not have begun, it may not be readable.
"""

from __future__ import annotations

import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from orchestrator.store.base import LedgerDamaged, LedgerError, LedgerNotBegun
from orchestrator.store.migrations import MIGRATIONS
from schemas.config import RunConfig

BUSY_TIMEOUT_S = 60.0
# The statements are fixed, so one that cannot be understood speaks of tables that are gone; an
# error without a code, of texts that are none.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, None)


def connect_for_reading(path: Path) -> sqlite3.Connection:
    """Open a ledger without writing; one in a folder that cannot be written, as it lies there."""
    address = path.absolute().as_uri()
    for options in ("mode=ro", "mode=ro&immutable=1"):
        db = sqlite3.connect(f"{address}?{options}", uri=True, timeout=BUSY_TIMEOUT_S)
        try:
            version = version_of(db)
            begun = db.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            db.close()
            problem = error
            continue
        except sqlite3.DatabaseError as error:
            db.close()
            raise damaged(path, error) from error
        if version not in range(1, len(MIGRATIONS) + 1):
            db.close()
            if version == 0 and not begun:
                raise LedgerNotBegun(f"{path} is empty")
            raise LedgerError(f"{path} has layout {version}, which this cprune does not know")
        return db
    raise LedgerError(f"the ledger {path} cannot be read: {problem}") from problem


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, with the file's lock from the beginning. ``db`` is in autocommit mode."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def version_of(db: sqlite3.Connection) -> int:
    """The layout of the file, 0 where there is none yet."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def means_damage(error: sqlite3.Error) -> bool:
    """Whether the file does not hold what was written."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.DatabaseError) and code in _DAMAGE


def damaged(path: Path, error: Exception) -> LedgerDamaged:
    """The error, in one sentence, for a file that cannot be understood."""
    problem = textwrap.shorten(str(error), 160)
    return LedgerDamaged(
        f"the ledger {path} is damaged ({problem}): put back a copy of it, or begin anew under "
        "another name in run; what lies in export/ is untouched"
    )


def text_of(config: RunConfig) -> str:
    """The configuration as it is stored. What does not read back is refused before it is."""
    text = config.model_dump_json()
    problem = "something of it is not of JSON"
    try:
        if RunConfig.model_validate_json(text) == config:
            return text
    except ValidationError as error:
        problem = ".".join(str(part) for part in error.errors()[0]["loc"])
    raise LedgerError(f"the configuration does not read back as it was given ({problem})")
