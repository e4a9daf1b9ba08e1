"""What the tuning worker asks of devices: latencies and outputs of libraries.

Three kinds answer: one device (``device_gauge``), all devices of a key (``fleet``), and a recording
(``recording``).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from schemas.table import Comparison, Measurement
from workers.compiling.builder import Library


class ProgramFailed(RuntimeError):
    """One library did not run: it crashed, hung or raised. The device lives."""


@dataclass(frozen=True)
class OutputCheck:
    """Difference of two libraries' outputs on the same inputs."""

    max_abs_error: float
    max_abs_output: float


@dataclass(frozen=True)
class Attribution:
    """A network's latency, and what its calls take inside it."""

    model_ms: float
    calls: tuple[tuple[str, float], ...]
    """Name of the compiled function and milliseconds of each call, in their order."""


@dataclass(frozen=True)
class Question:
    """A program to be timed. ``key`` names the question in a recording.

    Questions of one ``stretch`` follow each other, and are asked one after the other on one device.
    The first of them is what the others are compared with: where another device takes over, it is
    asked again there, and answered before the first of those.
    """

    key: str
    library: Library
    stretch: int | None = None


Answer = Measurement | ProgramFailed
Answers = Generator[tuple[int, Answer], None, None]
"""Index and answer of each question, of the first of a stretch perhaps several. Close it when the
rest is not wanted any more."""


class Gauge(Protocol):
    """What the tuning worker asks of a device. ``key`` names the question in a recording.

    Questions that are asked one by one go to one physical device for as long as it lasts; a
    measurement says which one it was.
    """

    device_model: str

    @property
    def device_s(self) -> float:
        """Seconds the device was busy for us; of several devices, of all together."""
        ...

    def measure(self, key: str, library: Library) -> Measurement:
        """Time one program. Raises ``ProgramFailed`` or ``DeviceLost``."""
        ...

    def measure_all(self, questions: Sequence[Question]) -> Answers:
        """Time programs on as many devices as there are; each answer as soon as it is known.

        Gives every question's index once (of the first of a stretch once more for each device that
        takes over), with its answer. Raises ``DeviceLost`` when no device is left; what
        was answered until then has been given.
        """
        ...

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        """Compare two libraries on the same random inputs. Raises as ``measure``."""
        ...

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        """Time two networks, paired and interleaved, on one device. Raises as ``measure``."""
        ...

    def attribute(
        self, key: str, network: Path, input_shape: tuple[int, ...]
    ) -> Attribution | None:
        """What each call of a network takes inside it; None where the device cannot tell.

        Raises as ``measure``.
        """
        ...

    def run(
        self, key: str, network: Path, images: np.ndarray[Any, Any], batch_size: int
    ) -> np.ndarray[Any, Any]:
        """A network's logits for images of shape (n, c, h, w), n a multiple of ``batch_size``."""
        ...

    def not_asked(self, key: str, reason: str) -> None:
        """Note that the question was not asked, since the library did not build."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Have the cores that the device shares with workers for several questions on end."""
        ...

    def release(self) -> None:
        """Give the device back until the next question."""
        ...

    def close(self) -> None:
        """End everything."""
        ...
