"""A batch of programs that several devices measure: who measures which, and what came of it."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from device_agents.local import DeviceLost
from workers.measuring.gauge import Answer, Answers, ProgramFailed, Question

MOST_LOSSES = 3
"""After so many lost devices the program is taken for the cause."""


@dataclass(frozen=True)
class Turn:
    """A question that a device has taken."""

    index: int
    question: Question


class Batch:
    """Shared by one thread for each device and the one that waits for the answers.

    A thread takes questions and answers them or gives them back, and leaves in the end.
    """

    def __init__(self, questions: Sequence[Question], devices: int) -> None:
        self._waiting = deque(Turn(index, question) for index, question in enumerate(questions))
        self._total = self._unanswered = len(questions)
        self._answers: deque[tuple[int, Answer]] = deque()
        self._losses: Counter[int] = Counter()
        self._devices = devices
        self._reason: BaseException = DeviceLost("there is no device")
        self._has_ended = False
        self._changed = threading.Condition()

    @property
    def is_unfinished(self) -> bool:
        """Whether there are questions whose answers somebody waits for."""
        return self._unanswered > 0 and not self._has_ended

    def take(self) -> Turn | None:
        """The next question; waits while others may still be given back. None when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self.is_unfinished)
            return self._waiting.popleft() if self.is_unfinished else None

    def answer(self, turn: Turn, answer: Answer) -> None:
        """The answer to a question that was taken."""
        with self._changed:
            self._unanswered -= 1
            self._answers.append((turn.index, answer))
            self._changed.notify_all()

    def give_back(self, turn: Turn, loss: DeviceLost) -> None:
        """The device was lost over a question: it is another one's turn, unless that is in vain."""
        self._losses[turn.index] += 1
        if self._losses[turn.index] >= MOST_LOSSES and not self._has_ended:
            failure = f"{MOST_LOSSES} devices were lost over it, at last: {loss}"
            self.answer(turn, ProgramFailed(failure))
            return
        with self._changed:
            self._waiting.appendleft(turn)
            self._changed.notify_all()

    def leave(self, loss: DeviceLost | None = None) -> None:
        """A device takes no more; ``loss`` when it was lost for good."""
        with self._changed:
            self._devices -= 1
            self._reason = loss or self._reason
            self._changed.notify_all()

    def end(self, reason: BaseException | None = None) -> None:
        """Nothing more is taken; who waits for answers gets the reason."""
        with self._changed:
            if not self._has_ended:
                self._has_ended = True
                self._reason = reason or self._reason
            self._changed.notify_all()

    def answers(self) -> Answers:
        """Index and answer of each question, as they come.

        Raises the reason why there will be no more, when some are missing.
        """
        for _ in range(self._total):
            with self._changed:
                self._changed.wait_for(
                    lambda: self._answers or self._has_ended or not self._devices
                )
                if not self._answers:
                    raise self._reason
                found = self._answers.popleft()
            yield found
