"""A run's folder: its lock, and ``events.jsonl``, the readable copy of the ledger's events."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
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
    return holder_of(run_dir) is not None


def holder_of(run_dir: Path) -> int | None:
    """The process that works on this run now; 0 where it has not written its number yet."""
    path = run_dir / LOCK
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read().strip() or 0)
    return None


class EventFile:
    """The ledger's events, each a line. It is a copy: what it holds besides is written over."""

    def __init__(self, run_dir: Path, events: Sequence[Event]) -> None:
        """Begin with all events so far."""
        self._path = run_dir / EVENTS
        self.last = events[-1].sequence if events else 0
        text = "".join(_line(event) for event in events).encode()
        if not self._path.exists() or self._path.read_bytes() != text:
            self._path.write_bytes(text)

    def append(self, events: Sequence[Event]) -> None:
        """Write the events that have come since."""
        with self._path.open("a", encoding="utf-8") as file:
            for event in events:
                file.write(_line(event))
                self.last = event.sequence


def _line(event: Event) -> str:
    return event.model_dump_json() + "\n"


def what_to_name(folder: Path) -> str:
    """What to name instead of a folder that holds no run."""
    runs = sorted(path.parent.name for path in folder.glob("*/ledger.sqlite"))
    if (folder / "comparison.html").exists():
        return (
            "it is a comparison: see comparison.html in it, or name one of its runs: "
            + ", ".join(runs)
        )
    if runs:
        return f"name one of the runs below it: {', '.join(runs)}"
    if (folder / "structure.json").exists():
        return "it is an exported network: name the folder of the run that it comes from"
    return "name the folder of a run, or begin one with 'cprune run CONFIG'"
