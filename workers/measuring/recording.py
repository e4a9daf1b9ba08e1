"""Devices that write down what they answer, and devices that answer from what was written.

A recording is a file of JSON lines: the first names the device model, each further one is a
question's key and its answer, or how the program failed. What is answered from a recording is
labelled so (``device_kind: replay``).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from schemas.table import Comparison, Measurement
from workers.compiling.builder import Builder, BuildJob, Library
from workers.errors import UserError
from workers.measuring.gauge import (
    Answers,
    Attribution,
    Gauge,
    OutputCheck,
    ProgramFailed,
    Question,
)
from workers.measuring.stretches import key_again, one_by_one


class RecordingGauge:
    """A gauge that appends every answer to a file."""

    def __init__(self, gauge: Gauge, path: Path) -> None:
        """A recording that is there already is continued.

        Raises ``UserError`` when it is of another device model, or no recording.
        """
        self._gauge = gauge
        self._path = path
        self.device_model = gauge.device_model
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
        if path.exists():
            os.truncate(path, whole)  # a kill may have torn the last line
        if not whole:
            self._write({"device_model": gauge.device_model})
            return
        recorded = ReplayGauge(path).device_model
        if recorded != gauge.device_model:
            raise UserError(
                "targets[].recording",
                f"{path} is a recording of {recorded}, not of {gauge.device_model}",
                "name another file",
            )

    @property
    def device_s(self) -> float:
        """Seconds the device was busy for us."""
        return self._gauge.device_s

    def measure(self, key: str, library: Library) -> Measurement:
        with self._failures(key):
            answer = self._gauge.measure(key, library)
        self._write_measurement(key, answer)
        return answer

    def measure_all(self, questions: Sequence[Question]) -> Answers:
        written: set[int] = set()
        with closing(self._gauge.measure_all(questions)) as answers:
            for index, answer in answers:
                key = questions[index].key
                if isinstance(answer, ProgramFailed):
                    self._write_failure(key, answer)
                elif index in written:
                    self._write_measurement(key_again(key, answer.device), answer)
                else:
                    self._write_measurement(key, answer)
                written.add(index)
                yield index, answer

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        with self._failures(key):
            answer = self._gauge.check(key, reference, library)
        self._write({"key": key, "check": [answer.max_abs_error, answer.max_abs_output]})
        return answer

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        with self._failures(key):
            answer = self._gauge.compare(key, reference, candidate, input_shape)
        self._write({"key": key, "comparison": answer.model_dump(mode="json")})
        return answer

    def attribute(
        self, key: str, network: Path, input_shape: tuple[int, ...]
    ) -> Attribution | None:
        with self._failures(key):
            answer = self._gauge.attribute(key, network, input_shape)
        told = None if answer is None else [answer.model_ms, answer.calls]
        self._write({"key": key, "attribution": told})
        return answer

    def run(
        self, key: str, network: Path, images: np.ndarray[Any, Any], batch_size: int
    ) -> np.ndarray[Any, Any]:
        with self._failures(key):
            answer = self._gauge.run(key, network, images, batch_size)
        data = base64.b64encode(answer.astype("float32").tobytes()).decode()
        self._write({"key": key, "logits": data, "shape": list(answer.shape)})
        return answer

    def not_asked(self, key: str, reason: str) -> None:
        self._write({"key": key, "failed": reason})

    def alone(self) -> AbstractContextManager[None]:
        return self._gauge.alone()

    def release(self) -> None:
        self._gauge.release()

    def close(self) -> None:
        self._gauge.close()

    @contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        try:
            yield
        except ProgramFailed as error:
            self._write_failure(key, error)
            raise

    def _write_measurement(self, key: str, measurement: Measurement) -> None:
        self._write({"key": key, "measurement": measurement.model_dump(mode="json")})

    def _write_failure(self, key: str, failure: ProgramFailed) -> None:
        self._write({"key": key, "failed": str(failure)})

    def _write(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        with self._path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:  # a full disk, which leaves no half of a line
                file.truncate(before)
                raise


class ReplayGauge:
    """A gauge that answers from a recording and touches no device."""

    def __init__(self, path: Path) -> None:
        """Raises ``UserError`` when the recording is missing or unreadable."""
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self.device_model = str(lines[0]["device_model"])
            self._answers = {str(line["key"]): line for line in lines[1:]}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                "targets[].recording",
                f"{path} is no recording ({error})",
                "record one by a run with device: local and the same recording",
            ) from error
        self._path = path
        self.device_s = 0.0

    def measure(self, key: str, library: Library) -> Measurement:
        return _replayed(Measurement.model_validate(self._answer(key)["measurement"]))

    def measure_all(self, questions: Sequence[Question]) -> Answers:
        return one_by_one(self.measure, questions)

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        return OutputCheck(*self._answer(key)["check"])

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        answer = Comparison.model_validate(self._answer(key)["comparison"])
        return answer.model_copy(
            update={
                "reference": _replayed(answer.reference),
                "candidate": _replayed(answer.candidate),
            }
        )

    def attribute(
        self, key: str, network: Path, input_shape: tuple[int, ...]
    ) -> Attribution | None:
        told = self._answer(key)["attribution"]
        if told is None:
            return None
        model_ms, calls = told
        return Attribution(model_ms, tuple((name, latency_ms) for name, latency_ms in calls))

    def run(
        self, key: str, network: Path, images: np.ndarray[Any, Any], batch_size: int
    ) -> np.ndarray[Any, Any]:
        answer = self._answer(key)
        data = base64.b64decode(answer["logits"])
        logits: np.ndarray[Any, Any] = np.frombuffer(data, "float32").reshape(answer["shape"])
        return logits

    def not_asked(self, key: str, reason: str) -> None:
        """It is in the recording."""

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None:
        """There is no device to give back."""

    def close(self) -> None:
        """There is nothing to end."""

    def _answer(self, key: str) -> dict[str, Any]:
        if key not in self._answers:
            raise UserError(
                "targets[].recording",
                f"{self._path} has no answer to {key}",
                "record anew with this configuration, on a device",
            )
        answer: dict[str, Any] = self._answers[key]
        if "failed" in answer:
            raise ProgramFailed(answer["failed"])
        return answer


def _replayed(measurement: Measurement) -> Measurement:
    return measurement.model_copy(update={"device_kind": "replay"})


class UnbuiltPrograms:
    """A builder for a device that answers from a recording.

    Single programs are not built: nobody will run them. Whole networks are: a run hands them over.
    """

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self.build_network = builder.build_network
        self.close = builder.close

    def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
        """Libraries without files."""
        return [Library(job.path) for job in jobs]
