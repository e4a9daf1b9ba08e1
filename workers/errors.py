"""Errors that say what is wrong, where in the configuration, and what to do next.

All of them survive pickling, so that they reach the driver from another process as they are.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something a user can put right.

    ``field`` is the dotted path in the configuration (``model.name``), ``message`` says what is
    wrong, ``hint`` what to do. ``str`` gives one sentence.
    """

    def __init__(self, field: str, message: str, hint: str = "") -> None:
        super().__init__(field, message, hint)
        self.field = field
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        sentence = f"{self.field}: {self.message}"
        return f"{sentence}; {self.hint}" if self.hint else sentence


def cause_of(error: BaseException) -> str:
    """An exception's kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


class TrainingDiverged(UserError):
    """The loss became infinite or not a number."""


class LimitReached(UserError):
    """A time limit ended the work: what it was about may be at fault, or a busy machine."""


class TrainingTimedOut(LimitReached):
    """A training took longer than ``train.timeout_s``."""
