"""A batch of programs that several devices measure: who measures which, and what came of it."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence

from device_agents.local import DeviceLost
from workers.measuring.gauge import Answer, Answers, ProgramFailed, Question
from workers.measuring.stretches import Stretch, stretches_of

MOST_LOSSES = 3
"""After so many lost devices the program is taken for the cause."""


class Batch:
    """Shared by one thread for each device and the one that waits for the answers.

    A thread takes stretches and answers their questions or gives them back, and leaves in the end.
    """

    def __init__(self, questions: Sequence[Question], devices: int) -> None:
        self._waiting = deque(stretches_of(questions))
        self._unanswered = set(range(len(questions)))
        self._answers: deque[tuple[int, Answer]] = deque()
        self._losses: Counter[int] = Counter()
        self._devices = devices
        self._reason: BaseException = DeviceLost("there is no device")
        self._has_ended = False
        self._changed = threading.Condition()

    @property
    def is_unfinished(self) -> bool:
        """Whether there are questions whose answers somebody waits for."""
        return bool(self._unanswered) and not self._has_ended

    def take(self) -> Stretch | None:
        """The next stretch; waits while others may still be given back. None when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self.is_unfinished)
            return self._waiting.popleft() if self.is_unfinished else None

    def answer(self, index: int, answer: Answer) -> None:
        """The answer to a question that was taken."""
        with self._changed:
            self._unanswered.discard(index)
            self._answers.append((index, answer))
            self._changed.notify_all()

    def give_back(self, left: Stretch, loss: DeviceLost) -> None:
        """The device was lost over the first of what is left of a stretch: it is another one's
        turn, unless that is in vain."""
        index, _ = left.questions[0]
        self._losses[index] += 1
        if self._losses[index] >= MOST_LOSSES and not self._has_ended:
            failure = f"{MOST_LOSSES} devices were lost over it, at last: {loss}"
            self.answer(index, ProgramFailed(failure))
            left = left.without_next()
        if left.questions:
            with self._changed:
                self._waiting.appendleft(left)
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
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._answers or not self.is_unfinished or not self._devices
                )
                if not self._answers and not self._unanswered:
                    return
                if not self._answers:
                    raise self._reason
                found = self._answers.popleft()
            yield found
