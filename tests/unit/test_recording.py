"""Recordings of a device's answers: written line by line, read back, refused when they are none."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.table import Comparison, Measurement
from workers.compiling.builder import Library
from workers.errors import UserError
from workers.measuring.gauge import (
    Answers,
    Gauge,
    OutputCheck,
    ProgramFailed,
    Question,
)
from workers.measuring.recording import RecordingGauge, ReplayGauge
from workers.measuring.stretches import one_by_one

LIBRARY = Library(Path("none.so"))
IMAGES = np.zeros((2, 1, 2, 2), "float32")
SHAPE = (1, 1, 2, 2)


def measurement(run_ms: float) -> Measurement:
    return Measurement(
        run_ms=(run_ms,), device="d", device_kind="local", threads=1, measured_at=1.0
    )


class FakeGauge:
    """Answers 1, 2, 3 and so on; fails on keys that begin with ``bad``."""

    device_model = "model-1t"

    def __init__(self) -> None:
        self.device_s = 0.0

    def _next(self, key: str) -> float:
        self.device_s += 1.0
        if key.startswith("bad"):
            raise ProgramFailed(f"{key} crashed")
        return self.device_s

    def measure(self, key: str, library: Library) -> Measurement:
        return measurement(self._next(key))

    def measure_all(self, questions: Sequence[Question]) -> Answers:
        """In the opposite order, as several devices may."""
        answers = dict(one_by_one(self.measure, questions))
        for index in sorted(answers, reverse=True):
            yield index, answers[index]

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        return OutputCheck(self._next(key), 7.0)

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        took = self._next(key)
        return Comparison(
            reference_ms=(took, took),
            candidate_ms=(took / 2, took / 3),
            reference=measurement(took),
            candidate=measurement(took / 2),
        )

    def run(self, key: str, network: Path, images: Any, batch_size: int) -> Any:
        return np.full((len(images), 3), self._next(key), "float32")

    def not_asked(self, key: str, reason: str) -> None:
        pass

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None: ...

    def close(self) -> None: ...


def recording(path: Path) -> RecordingGauge:
    return RecordingGauge(FakeGauge(), path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "device.jsonl"


def test_what_was_answered_is_answered_again(path: Path) -> None:
    gauge = recording(path)
    measured = gauge.measure("m", LIBRARY)
    checked = gauge.check("c", LIBRARY, LIBRARY)
    compared = gauge.compare("p", path, path, SHAPE)
    logits = gauge.run("r", path, IMAGES, 1)
    assert gauge.device_s == 4.0

    replay = ReplayGauge(path)
    assert replay.device_model == "model-1t"
    assert replay.measure("m", LIBRARY) == measured.model_copy(update={"device_kind": "replay"})
    assert replay.check("c", LIBRARY, LIBRARY) == checked
    again = replay.compare("p", path, path, SHAPE)
    assert (again.reference_ms, again.candidate_ms) == (
        compared.reference_ms,
        compared.candidate_ms,
    )
    assert {again.reference.device_kind, again.candidate.device_kind} == {"replay"}
    assert np.array_equal(replay.run("r", path, IMAGES, 1), logits)
    assert replay.device_s == 0.0


def test_the_order_of_answers_makes_no_difference(path: Path) -> None:
    asked = [Question(key, LIBRARY) for key in ("a", "bad b", "c")]
    answered = list(recording(path).measure_all(asked))
    assert [index for index, _ in answered] == [2, 1, 0]
    again = list(ReplayGauge(path).measure_all(asked))
    assert [index for index, _ in again] == [0, 1, 2]
    for index, answer in answered:
        repeated = again[index][1]
        if isinstance(answer, ProgramFailed):
            assert isinstance(repeated, ProgramFailed) and str(repeated) == str(answer)
        else:
            assert repeated == answer.model_copy(update={"device_kind": "replay"})


def assert_all_fail(gauge: Gauge, path: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"^bad m crashed$"):
        gauge.measure("bad m", LIBRARY)
    with pytest.raises(ProgramFailed, match=r"^bad c crashed$"):
        gauge.check("bad c", LIBRARY, LIBRARY)
    with pytest.raises(ProgramFailed, match=r"^bad p crashed$"):
        gauge.compare("bad p", path, path, SHAPE)
    with pytest.raises(ProgramFailed, match=r"^bad r crashed$"):
        gauge.run("bad r", path, IMAGES, 1)


def test_failures_are_answers_too(path: Path) -> None:
    assert_all_fail(recording(path), path)
    assert len(path.read_text().splitlines()) == 5
    assert_all_fail(ReplayGauge(path), path)


def test_a_recording_is_continued(path: Path) -> None:
    recording(path).measure("a", LIBRARY)
    recording(path).measure("b", LIBRARY)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("key") for line in lines] == [None, "a", "b"]


def test_a_line_torn_by_a_kill_is_dropped(path: Path) -> None:
    recording(path).measure("a", LIBRARY)
    with path.open("a") as file:
        file.write('{"key": "b", "measure')
    recording(path).measure("c", LIBRARY)
    replay = ReplayGauge(path)
    replay.measure("a", LIBRARY)
    replay.measure("c", LIBRARY)
    with pytest.raises(UserError):
        replay.measure("b", LIBRARY)


@pytest.mark.parametrize("left", ["", '{"device_mod'])
def test_a_recording_that_was_killed_at_its_first_line_begins_anew(path: Path, left: str) -> None:
    path.parent.mkdir()
    path.write_text(left)
    recording(path).measure("a", LIBRARY)
    ReplayGauge(path).measure("a", LIBRARY)


def test_a_full_disk_leaves_no_half_of_a_line(path: Path) -> None:
    recording(path).measure("a", LIBRARY)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError):
            recording(path).measure("b", LIBRARY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.stat().st_size == size
    recording(path).measure("c", LIBRARY)
    ReplayGauge(path).measure("c", LIBRARY)


def test_a_recording_of_another_device_is_not_continued(path: Path) -> None:
    recording(path)
    other = FakeGauge()
    other.device_model = "model-8t"
    with pytest.raises(UserError, match=r"recording.*model-1t.*model-8t"):
        RecordingGauge(other, path)


def test_an_unknown_question_is_the_users_error(path: Path) -> None:
    recording(path).measure("a", LIBRARY)
    with pytest.raises(UserError, match="has no answer to z; record anew") as caught:
        ReplayGauge(path).measure("z", LIBRARY)
    assert caught.value.field == "targets[].recording" and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [None, "", "no json\n", '{"key": "a"}\n', "[1]\n", '{"device_model": "m"}\n{"x": 1}\n'],
)
def test_what_is_no_recording_is_refused_by_name(path: Path, text: str | None) -> None:
    if text is not None:
        path.parent.mkdir()
        path.write_text(text)
    with pytest.raises(UserError, match="is no recording") as caught:
        ReplayGauge(path)
    assert str(path) in str(caught.value)
