"""The gauge: takes latencies and outputs of libraries on one device, and never hangs.

Every question to a device goes through a process of its own (``gauge_server``). One that gets no
answer in time ends that process and counts as the device's failure, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from device_agents.host_cores import HostCores
from device_agents.local import DeviceLost
from device_agents.processes import ProcessDied, ProcessTimeout, RemoteFailure, WarmProcess
from schemas.config import MeasureConfig
from schemas.table import Comparison, Measurement
from workers.compiling.builder import Library

_CORES_WAIT_S = 600.0


class ProgramFailed(RuntimeError):
    """One library did not run: it crashed, hung or raised. The device lives."""


@dataclass(frozen=True)
class OutputCheck:
    """Difference of two libraries' outputs on the same inputs."""

    max_abs_error: float
    max_abs_output: float


class Gauge(Protocol):
    """What the tuning worker asks of a device. ``key`` names the question in a recording."""

    device_model: str

    @property
    def device_s(self) -> float:
        """Seconds the device was busy for us."""
        ...

    def measure(self, key: str, library: Library) -> Measurement:
        """Time one program. Raises ``ProgramFailed`` or ``DeviceLost``."""
        ...

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        """Compare two libraries on the same random inputs. Raises as ``measure``."""
        ...

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        """Time two networks, paired and interleaved. Raises as ``measure``."""
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


@dataclass(frozen=True)
class DeviceAddress:
    """Where a device is to be had."""

    host: str
    port: int
    key: str
    threads: int | None
    kind: Literal["local", "tracker"]
    device_model: str


class LocalAgent(Protocol):
    """What brings a device of this machine back."""

    def ensure_alive(self) -> bool:
        """Start what has died; whether the device was started. Raises ``DeviceLost``."""
        ...

    def restart(self) -> None:
        """End the device and start it again. Raises ``DeviceLost``."""
        ...


class DeviceGauge:
    """A gauge on a real device, through its RPC tracker."""

    def __init__(
        self,
        address: DeviceAddress,
        config: MeasureConfig,
        cores: HostCores | None,
        local: LocalAgent | None,
    ) -> None:
        """``cores`` is the token of cores the device shares with this host; None if it has its own.

        ``local`` is the agent of a local device: it is started anew when it does not answer.
        """
        self.device_model = address.device_model
        self.device_s = 0.0
        self._address = address
        self._config = config
        self._cores = cores
        self._local = local
        self._process = WarmProcess("workers.measuring.gauge_server", name="gauge")
        self._facts: dict[str, Any] | None = None
        self._opened_at = 0.0
        self._opened_by: int | None = None
        self._ratio = 1.0
        self._is_alone = False

    def measure(self, key: str, library: Library) -> Measurement:
        config = self._config
        answer = self._ask(
            "program",
            {
                "path": str(library.path),
                "arguments": [list(argument) for argument in library.arguments],
                "repeats": config.program_repeats,
                "min_repeat_ms": config.program_min_repeat_ms,
                "cache_flush_bytes": config.cache_flush_bytes,
            },
        )
        return self._measurement(answer["run_ms"], answer, self._facts or {})

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        answer = self._ask(
            "check",
            {
                "reference": str(reference.path),
                "path": str(library.path),
                "arguments": [list(argument) for argument in library.arguments],
                "seed": 0,
            },
            alone=False,
        )
        return OutputCheck(answer["max_abs_error"], answer["max_abs_output"])

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        config = self._config
        answer = self._ask(
            "pair",
            {
                "reference": str(reference),
                "candidate": str(candidate),
                "input_shape": list(input_shape),
                "pairs": config.model_repeats,
                "min_repeat_ms": config.model_min_repeat_ms,
                "seed": 0,
            },
            patience=1 + config.model_repeats * config.model_min_repeat_ms / 1000,
        )
        facts = self._facts or {}  # the canary may lose the session, and what is known of it
        self._look_at_canary()
        return Comparison(
            reference_ms=tuple(answer["reference_ms"]),
            candidate_ms=tuple(answer["candidate_ms"]),
            reference=self._measurement(answer["reference_ms"], answer, facts),
            candidate=self._measurement(answer["candidate_ms"], answer, facts),
        )

    def run(
        self, key: str, network: Path, images: np.ndarray[Any, Any], batch_size: int
    ) -> np.ndarray[Any, Any]:
        answer = self._ask(
            "run",
            {
                "path": str(network),
                "input_shape": [batch_size, *images.shape[1:]],
                "images": np.ascontiguousarray(images, dtype="float32").tobytes(),
            },
            alone=False,
        )
        logits: np.ndarray[Any, Any] = np.frombuffer(answer["logits"], dtype="float32").reshape(
            answer["shape"]
        )
        return logits

    def not_asked(self, key: str, reason: str) -> None:
        """The device has nothing to do."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        if self._cores is None or self._is_alone:
            yield
            return
        with self._cores.measuring(_CORES_WAIT_S):
            self._is_alone = True
            try:
                yield
            finally:
                self._is_alone = False

    def release(self) -> None:
        if self._facts is None:
            return
        self._look_at_canary()
        if self._facts is None:  # the session was lost on the way
            return
        try:
            self._process.call("close", timeout_s=self._config.answer_timeout_s)
        except (ProcessDied, ProcessTimeout, RemoteFailure):
            self._process.stop()
        self._facts = None

    def close(self) -> None:
        self._process.stop()
        self._facts = None

    def _ask(
        self, method: str, request: dict[str, Any], *, alone: bool = True, patience: float = 0.0
    ) -> dict[str, Any]:
        """Open a session if there is none, ask, and tell a program's failure from the device's.

        A library after which the device does not answer is tried once: it failed, and the device is
        made ready for the next one. ``alone``: nothing else of ours runs on shared cores meanwhile.
        """
        self._ensure_open()
        limit_s = self._config.answer_timeout_s + 2 * patience
        token = self.alone() if alone else nullcontext()
        with token:
            began = time.monotonic()
            try:
                return self._process.call(method, request, timeout_s=limit_s)
            except RemoteFailure as error:
                failure = f"{error.kind}: {error.message.strip().splitlines()[-1][:300]}"
            except ProcessTimeout:
                failure = f"no answer within {limit_s:g} s"
            except ProcessDied as error:
                failure = f"the measuring process died: {error}"
            finally:
                self.device_s += time.monotonic() - began
        self._recover()
        raise ProgramFailed(failure)

    def _ensure_open(self) -> None:
        lease_s = self._config.session_timeout_s
        if self._facts is not None and self._is_lost():
            self._facts = None
            self._process.stop()
        if self._facts is not None and time.monotonic() - self._opened_at > lease_s / 2:
            self.release()
        if self._facts is not None:
            return
        errors = []
        for _attempt in range(3):
            if self._local is not None:
                self._local.ensure_alive()
            try:
                self._facts = self._process.call(
                    "open",
                    {
                        "host": self._address.host,
                        "port": self._address.port,
                        "key": self._address.key,
                        "threads": self._address.threads,
                        "lease_s": lease_s,
                        "wait_s": self._config.device_wait_s,
                    },
                    timeout_s=self._config.device_wait_s + self._config.answer_timeout_s,
                )
                self._opened_at, self._opened_by = time.monotonic(), self._process.pid
                return
            except RemoteFailure as error:
                errors.append(f"{error.kind}: {error.message}")
                if error.kind in ("NoDevice", "WrongThreads"):
                    break
            except (ProcessDied, ProcessTimeout) as error:
                errors.append(str(error))
            if self._local is not None:
                self._local.restart()
        raise DeviceLost(
            f"device {self._address.key!r} of the tracker at "
            f"{self._address.host}:{self._address.port}: {errors[-1]}"
        )

    def _is_lost(self) -> bool:
        """Whether the measuring process or a local device died since the session was opened."""
        if self._process.pid != self._opened_by:
            return True
        return self._local is not None and self._local.ensure_alive()

    def _recover(self) -> None:
        """After a failure: the session is void; a local device that may be stuck starts anew."""
        self._facts = None
        self._process.stop()
        if self._local is not None:
            self._local.restart()

    def _look_at_canary(self) -> None:
        try:
            with self.alone():
                answer = self._process.call("canary", timeout_s=self._config.answer_timeout_s)
            self._ratio = answer["ratio"]
        except (ProcessDied, ProcessTimeout, RemoteFailure):
            self._facts = None
            self._process.stop()

    def _measurement(
        self, run_ms: list[float], answer: dict[str, Any], facts: dict[str, Any]
    ) -> Measurement:
        return Measurement(
            run_ms=tuple(run_ms),
            device=facts["device"],
            device_kind=self._address.kind,
            threads=facts["threads"],
            temperature_c=facts["temperature_c"],
            canary_ratio=self._ratio,
            measured_at=answer["measured_at"],
        )
