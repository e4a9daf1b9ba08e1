"""A run's folder: its lock, and ``events.jsonl``, the readable copy of the ledger's events."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.store.base import Event

EVENTS = "events.jsonl"
LOCK = "run.lock"


class RunLocked(RuntimeError):
    """Another process works on this run."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder. The lock goes with the process, however that ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RunLocked(
                f"{run_dir} is being worked on by process {holder}: wait for it, or stop it first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_locked(run_dir: Path) -> bool:
    """Whether a process works on this run now."""
    try:
        with (run_dir / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class EventFile:
    """Appends events, each a line; what a killed process left out or left torn is mended first."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVENTS
        self.last = self._mend()

    def append(self, events: Iterable[Event]) -> None:
        """Write the events that are not in the file yet."""
        with self._path.open("a", encoding="utf-8") as file:
            for event in events:
                if event.sequence > self.last:
                    file.write(event.model_dump_json() + "\n")
                    self.last = event.sequence

    def _mend(self) -> int:
        if not self._path.exists():
            return 0
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        lines = whole.splitlines()
        return int(json.loads(lines[-1])["sequence"]) if lines else 0
