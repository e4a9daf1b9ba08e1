"""The trainings in flight: as workers tell of them, and as bars on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from schemas.progress import ToldProgress

FOLDER = "progress"
FRESH_S = 10.0
"""A training that has not written for so long is over, or stuck."""

_NAMES = {"prepare": "dense network", "uniform": "uniform network", "fine_tune": "fine-tuning"}


@dataclass(frozen=True)
class Training:
    """A training in flight; ``key`` tells it from others."""

    key: str
    told: ToldProgress

    @property
    def name(self) -> str:
        """What it trains."""
        return _NAMES.get(self.told.what, self.told.what)

    @property
    def accuracy(self) -> str:
        """In words; empty before the first epoch has ended."""
        accuracy = self.told.val_accuracy
        return "" if accuracy is None else f"validation {accuracy:.2%}"


def trainings_in_flight(run_dir: Path, since: float = 0.0) -> Iterator[Training]:
    """What trainings wrote to ``RUN_DIR/progress`` in the last ``FRESH_S`` seconds, unless they
    ended, nor before ``since``, in seconds since 1970."""
    oldest = max(since, time.time() - FRESH_S)
    for path in sorted((run_dir / FOLDER).glob("*.json")):
        try:
            if path.stat().st_mtime < oldest:
                continue
            told = ToldProgress.model_validate_json(path.read_text())
        except (OSError, ValueError):  # being replaced this moment
            continue
        if told.epoch < told.epochs or told.batch < told.batches:
            yield Training(key=path.name, told=told)


class TrainingBars:
    """Shows what workers wrote to ``RUN_DIR/progress``; does nothing where there is no terminal."""

    def __init__(self, run_dir: Path, began_at: float) -> None:
        """``began_at``: seconds since the epoch; what was written before is another start's."""
        self._run_dir = run_dir
        self._began_at = began_at
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn(
                    "epoch {task.fields[epoch]}, loss {task.fields[loss]:.3f}", markup=False
                ),
                TextColumn("{task.fields[accuracy]}", markup=False),
                TimeElapsedColumn(),
                console=Console(emoji=False),
                transient=True,
            )

    def __enter__(self) -> TrainingBars:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def print_line(self, text: str) -> None:
        """A line above the bars."""
        if self._progress is None:
            print(text, flush=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False, emoji=False)

    def update(self) -> None:
        """Look at what the trainings wrote last."""
        if self._progress is None:
            return
        seen = set()
        for training in trainings_in_flight(self._run_dir, self._began_at):
            seen.add(training.key)
            self._show(self._progress, training)
        for key in set(self._bars) - seen:
            self._progress.remove_task(self._bars.pop(key))

    def _show(self, progress: Progress, training: Training) -> None:
        if training.key not in self._bars:
            self._bars[training.key] = progress.add_task(
                training.name, total=None, epoch="", loss=0.0, accuracy=""
            )
        told = training.told
        progress.update(
            self._bars[training.key],
            total=told.epochs * told.batches,
            completed=max(0, told.epoch - 1) * told.batches + told.batch,
            epoch=f"{told.epoch}/{told.epochs}",
            loss=told.loss,
            accuracy=training.accuracy,
        )
