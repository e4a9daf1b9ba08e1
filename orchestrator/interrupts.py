"""Ctrl-C and SIGTERM: the first drains and saves, the second cancels, the third leaves at once.

Python calls a handler between two steps of the main thread, which may be waiting in Ray for a
second, and once for equal signals that came meanwhile. Each arrival leaves a byte in a pipe,
though, and a thread beside the handler counts these as they come.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 130
DRAIN_DEADLINE_S = 300.0
"""How long work in flight may take to end after the first signal, before it is cancelled."""

_TEXTS = {
    1: f"stopping: the work in flight has {DRAIN_DEADLINE_S / 60:g} minutes to end, and is saved; "
    "once more cancels it, thrice leaves",
    2: "cancelling the work in flight; once more leaves at once",
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST = 0  # the byte that ends the watching; no signal has this number


class Interrupts:
    """Counts the signals while it is entered, and puts the old handlers back."""

    def __init__(
        self,
        report: Callable[[str], None] = lambda text: None,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self._report = report
        self._leave = leave
        self._numbers = itertools.count(1)
        self._noticed: list[int] = []
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._pipe = (-1, -1)
        self._watcher: threading.Thread | None = None

    @property
    def count(self) -> int:
        """How many signals came."""
        return len(self._noticed)

    def notice(self) -> None:
        """One more signal. Takes no lock: it may interrupt itself, and run in two threads."""
        number = next(self._numbers)
        self._noticed.append(number)
        if number >= 3:
            self._leave(EXIT_CODE)
        else:
            self._report(_TEXTS[number])

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watcher is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        read, write = self._pipe
        os.write(write, bytes([_LAST]))
        self._watcher.join()
        os.close(write)
        os.close(read)
        self._watcher = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._take()

    def _watch(self) -> None:
        """Take the signals as they come, to the last."""
        more = True
        while more:
            select.select([self._pipe[0]], [], [])
            more = self._take()

    def _take(self) -> bool:
        """Notice the signals that nobody has taken yet; False once the watching is to end."""
        try:
            numbers = os.read(self._pipe[0], 64)
        except BlockingIOError:
            return True
        for number in numbers:
            if number in _SIGNALS:
                self.notice()
        return _LAST not in numbers
