"""What ``cprune clean`` says of the record store, and how it removes the records."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from orchestrator.store.records import RecordsBroken, RecordStore
from orchestrator.wording import count


@dataclass(frozen=True)
class Found:
    """What is in the store's place: text for people, and whether there is anything to remove."""

    text: str
    removable: bool


def look(path: Path) -> Found:
    """What the store holds. Raises ``RecordsUnusable`` when it cannot be read now."""
    if not files_of(path):
        return Found(f"{path}: no records", False)
    try:
        with closing(_open(path)) as store:
            records, tasks = store.extent()
    except RecordsBroken as error:
        return Found(f"{error} ({_megabytes(path)})", True)
    what = f"{count(records, 'program')} of {count(tasks, 'task')}"
    return Found(f"{path}: {what}, {_megabytes(path)}", records > 0)


def remove(path: Path) -> None:
    """Remove all records; of a file that is no store of this version, the file itself."""
    try:
        with closing(_open(path)) as store:
            store.clear()
    except RecordsBroken:
        for file in files_of(path):
            file.unlink(missing_ok=True)


def files_of(path: Path) -> list[Path]:
    """The store's file and what SQLite keeps beside it, those that are there."""
    names = (path.name, f"{path.name}-wal", f"{path.name}-shm")
    return [found for name in names if (found := path.with_name(name)).is_file()]


def _open(path: Path) -> RecordStore:
    return RecordStore(path, max_bytes=math.inf, conditions="")


def _megabytes(path: Path) -> str:
    return f"{sum(file.stat().st_size for file in files_of(path)) / 1e6:.1f} MB"
