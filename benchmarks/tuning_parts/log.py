"""What a search did and when: one line for each program, written as it happens.

A search may be stopped at any moment; the lines it had written by then count.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Loss = Literal["time-out", "compile error", "other"]
Outcome = Literal["measured", "end"] | Loss
LOSSES: tuple[Loss, ...] = get_args(Loss)

_NAME = "search.jsonl"
_WHY_CHARACTERS = 300


@dataclass(frozen=True)
class Event:
    """``at_s`` is of the machine's monotonic clock, the same in all of its processes."""

    at_s: float
    outcome: Outcome
    why: str


class SearchLog:
    """The log of the search that works in ``folder``; any thread may write."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def note(self, outcome: Outcome, why: str = "") -> None:
        """Write what became of a program, or that the search has ended."""
        text = why.strip()[-_WHY_CHARACTERS:]
        line = json.dumps({"at_s": time.monotonic(), "outcome": outcome, "why": text})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_log(folder: Path) -> list[Event]:
    """The events of the search that worked in ``folder``, in their order."""
    path = folder / _NAME
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [Event(**json.loads(line)) for line in complete_lines(text).splitlines()]


def complete_lines(text: str) -> str:
    """The text without a last line that was being written when its process was stopped."""
    return text[: text.rfind("\n") + 1]
