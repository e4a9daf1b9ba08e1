"""Ctrl-C and SIGTERM: the first drains and saves, the second cancels, the third leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 130
DRAIN_DEADLINE_S = 300.0
"""How long work in flight may take to end after the first signal, before it is cancelled."""

_TEXTS = {
    1: "stopping: the work in flight is finished and saved; once more cancels it, thrice leaves",
    2: "cancelling the work in flight; once more leaves at once",
}


class Interrupts:
    """Counts the signals while it is entered, and puts the old handlers back."""

    def __init__(
        self,
        report: Callable[[str], None] = lambda text: None,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self.count = 0
        self._report = report
        self._leave = leave
        self._before: dict[signal.Signals, Any] = {}

    def notice(self) -> None:
        """One more signal."""
        self.count += 1
        if self.count >= 3:
            self._leave(EXIT_CODE)
        else:
            self._report(_TEXTS[self.count])

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.notice()
