"""Questions that one device answers in a row, so that their answers may be compared.

What differs between two devices of a model, or drifts on one between two stretches, cancels out of
the ratios to the first of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from device_agents.local import DeviceLost
from schemas.table import Measurement
from workers.compiling.builder import Library
from workers.measuring.gauge import Answer, Answers, ProgramFailed, Question

Measure = Callable[[str, Library], Measurement]
"""As ``Gauge.measure``."""


@dataclass(frozen=True)
class Stretch:
    """Questions with their indices, what is left of them.

    ``first`` may have been answered; None when it does not run.
    """

    first: tuple[int, Question] | None
    questions: tuple[tuple[int, Question], ...]

    def after(self, count: int) -> Stretch:
        """Without the first ``count`` of what is left."""
        return Stretch(self.first, self.questions[count:])

    def without_next(self) -> Stretch:
        """After the next question was given up, with which the first one may go."""
        gone = self.first == self.questions[0]
        return Stretch(None if gone else self.first, self.questions[1:])


def stretches_of(questions: Sequence[Question]) -> list[Stretch]:
    """The stretches of these questions; one that belongs to none is one by itself."""

    def name(numbered: tuple[int, Question]) -> tuple[bool, int]:
        index, question = numbered
        alone = question.stretch is None
        return alone, index if question.stretch is None else question.stretch

    found = [tuple(group) for _, group in groupby(enumerate(questions), name)]
    return [Stretch(group[0], group) for group in found]


def answers_of(stretch: Stretch, measure: Measure) -> Iterator[list[tuple[int, Answer]]]:
    """What each question of a stretch brings: its answer, and before it that of the first one where
    that has none of the same device yet.

    Should the first one not run, no device is asked for it any more. Raises ``DeviceLost`` as
    ``measure`` does; the question then has no answer.
    """
    first = stretch.first
    seen: set[str] = set()
    for numbered in stretch.questions:
        index, question = numbered
        answer = _answer(measure, question)
        told = [(index, answer)]
        if numbered == first and not isinstance(answer, Measurement):
            first = None
        if first is not None and isinstance(answer, Measurement) and answer.device not in seen:
            seen.add(answer.device)
            if numbered != first:
                again = _again(measure, first[1], answer.device)
                if again is None:
                    first = None
                else:
                    told.insert(0, (first[0], again))
        yield told


def one_by_one(measure: Measure, questions: Sequence[Question]) -> Answers:
    """``Gauge.measure_all`` of a gauge that has one device."""
    for stretch in stretches_of(questions):
        for told in answers_of(stretch, measure):
            yield from told


def _again(measure: Measure, first: Question, device: str) -> Measurement | None:
    """The first of a stretch on another device; None where it does not run there.

    A device that is lost over it is noticed with the next question.
    """
    try:
        return measure(key_again(first.key, device), first.library)
    except (ProgramFailed, DeviceLost):
        return None


def key_again(key: str, device: str) -> str:
    """Under which a question that is asked again on another device is recorded."""
    return f"{key}:{device}"


def _answer(measure: Measure, question: Question) -> Answer:
    try:
        return measure(question.key, question.library)
    except ProgramFailed as failure:
        return failure
