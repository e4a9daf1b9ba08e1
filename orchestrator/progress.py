"""Progress bars of the trainings in flight, on a terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

FOLDER = "progress"
FRESH_S = 10.0
"""A training that has not written for so long is over, or stuck; its bar goes."""

_NAMES = {"prepare": "dense network", "uniform": "uniform network", "fine_tune": "fine-tuning"}


class TrainingBars:
    """Shows what workers wrote to ``RUN_DIR/progress``; does nothing where there is no terminal."""

    def __init__(self, run_dir: Path, began_at: float) -> None:
        """``began_at``: seconds since the epoch; what was written before is another start's."""
        self._folder = run_dir / FOLDER
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
        if self._progress is None or not self._folder.is_dir():
            return
        oldest = max(self._began_at, time.time() - FRESH_S)
        seen = set()
        for path in self._folder.glob("*.json"):
            try:
                if path.stat().st_mtime < oldest:
                    continue
                told = json.loads(path.read_text())
            except (OSError, ValueError):  # being replaced this moment
                continue
            if told["epoch"] >= told["epochs"] and told["batch"] >= told["batches"]:
                continue
            seen.add(path.name)
            self._show(self._progress, path.name, told)
        for name in set(self._bars) - seen:
            self._progress.remove_task(self._bars.pop(name))

    def _show(self, progress: Progress, name: str, told: dict[str, float | str | None]) -> None:
        if name not in self._bars:
            self._bars[name] = progress.add_task(
                _NAMES.get(str(told["what"]), str(told["what"])),
                total=None,
                epoch="",
                loss=0.0,
                accuracy="",
            )
        epoch, epochs = int(told["epoch"] or 0), int(told["epochs"] or 0)
        batch, batches = int(told["batch"] or 0), int(told["batches"] or 1)
        accuracy = told["val_accuracy"]
        progress.update(
            self._bars[name],
            total=epochs * batches,
            completed=max(0, epoch - 1) * batches + batch,
            epoch=f"{epoch}/{epochs}",
            loss=float(told["loss"] or 0.0),
            accuracy="" if accuracy is None else f"validation {float(accuracy):.2%}",
        )
