"""Questions that belong together: one device, the first of them asked again on another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from device_agents.local import DeviceLost
from schemas.table import Measurement
from workers.compiling.builder import Library
from workers.measuring.batch import MOST_LOSSES, Batch
from workers.measuring.gauge import ProgramFailed, Question
from workers.measuring.stretches import answers_of, one_by_one, stretches_of

LIBRARY = Library(Path("none.so"))


def question(name: str) -> Question:
    """``1a`` belongs to the first stretch, ``a`` to none."""
    return Question(name, LIBRARY, int(name[0]) if name[0].isdigit() else None)


def measure(*devices: str) -> Callable[[str, Library], Measurement]:
    """Each question is answered by the next device; one may fail, or be lost."""
    left = iter(devices)

    def answer(key: str, library: Library) -> Measurement:
        device = next(left)
        if device == "fails":
            raise ProgramFailed("it crashed")
        if device == "lost":
            raise DeviceLost("gone")
        return Measurement(
            run_ms=(1.0,), device=device, device_kind="tracker", threads=1, measured_at=0.0
        )

    return answer


def test_what_follows_each_other_under_one_number_is_a_stretch() -> None:
    found = stretches_of([question(name) for name in ("a", "1a", "1b", "b", "2a", "1c")])
    names = [[asked.key for _, asked in stretch.questions] for stretch in found]
    assert names == [["a"], ["1a", "1b"], ["b"], ["2a"], ["1c"]]
    indices = [index for stretch in found for index, _ in stretch.questions]
    assert indices == list(range(6))


def told(*devices: str) -> list[int]:
    """Indices of the answers to a stretch of three."""
    asked = [question(name) for name in ("1a", "1b", "1c")]
    return [index for index, _ in one_by_one(measure(*devices), asked)]


def test_on_one_device_each_is_asked_once() -> None:
    assert told("one", "one", "one") == [0, 1, 2]
    assert told("one", "fails", "one") == [0, 1, 2]


def test_where_another_device_answers_the_first_is_asked_there_too() -> None:
    assert told("one", "one", "two", "two") == [0, 1, 0, 2]
    assert told("one", "two", "two", "two") == [0, 0, 1, 2]


def test_a_first_one_that_does_not_run_is_not_asked_again() -> None:
    assert told("fails", "one", "two") == [0, 1, 2]
    assert told("one", "two", "fails", "three") == [0, 1, 2]
    assert told("one", "two", "lost", "three") == [0, 1, 2]


def test_what_is_left_of_a_stretch_is_answered_by_another_device() -> None:
    batch = Batch([question(name) for name in ("1a", "1b", "1c")], devices=1)
    stretch = batch.take()
    assert stretch is not None
    answered = 0
    with pytest.raises(DeviceLost):
        for found in answers_of(stretch, measure("one", "one", "lost")):
            answered += 1
            for index, answer in found:
                batch.answer(index, answer)
    batch.give_back(stretch.after(answered), DeviceLost("gone"))
    left = batch.take()
    assert left is not None and [asked.key for _, asked in left.questions] == ["1c"]
    for found in answers_of(left, measure("two", "two")):
        for index, answer in found:
            batch.answer(index, answer)
    devices = [(i, a.device) for i, a in batch.answers() if isinstance(a, Measurement)]
    assert devices == [(0, "one"), (1, "one"), (0, "two"), (2, "two")]
    assert batch.take() is None


def test_a_question_over_which_devices_are_lost_fails_and_the_others_of_its_stretch_do_not() -> (
    None
):
    batch = Batch([question(name) for name in ("1a", "1b")], devices=1)
    for _ in range(MOST_LOSSES):
        stretch = batch.take()
        assert stretch is not None and len(stretch.questions) == 2
        batch.give_back(stretch, DeviceLost("gone"))
    left = batch.take()
    assert left is not None and [asked.key for _, asked in left.questions] == ["1b"]
    (found,) = answers_of(left, measure("one"))  # the first one is asked of no other device
    for index, answer in found:
        batch.answer(index, answer)
    kinds = [(index, isinstance(answer, ProgramFailed)) for index, answer in batch.answers()]
    assert kinds == [(0, True), (1, False)]
