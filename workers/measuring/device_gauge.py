"""The gauge on one device, through its RPC tracker, which never hangs.

Every question to a device goes through a process of its own (``gauge_server``). One that gets no
answer in time ends that process and counts as the failure of the program or, where the device does
not answer at all, of the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from device_agents.health import answers
from device_agents.host_cores import CORES_WAIT_S, HostCores
from device_agents.local import DeviceLost
from device_agents.processes import ProcessDied, ProcessTimeout, RemoteFailure, WarmProcess
from schemas.config import MeasureConfig
from schemas.table import Comparison, Measurement
from workers.compiling.builder import Library
from workers.measuring.agents import DeviceAddress, LocalAgent
from workers.measuring.gauge import (
    Answers,
    Attribution,
    OutputCheck,
    ProgramFailed,
    Question,
)
from workers.measuring.stretches import one_by_one

_PROBE_S = 3.0
_ATTEMPTS = 3
_RAISED_THERE = "RPCError"
"""Kind of what a program raised on the device, whose session lives on."""


class NoneFree(DeviceLost):
    """No device of the key was to be had in time."""


class _SessionEnded(ProgramFailed):
    """The session ended over a question, by the program or by what befell the device meanwhile."""


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
        if local is not None:  # it will be wanted soon
            self._process.prepare()
        self._facts: dict[str, Any] | None = None
        self._opened_at = 0.0
        self._opened_by: int | None = None
        self._is_alone = False
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether it has a session."""
        return self._facts is not None

    @property
    def pid(self) -> int | None:
        """Process id of the measuring process; None while there is none."""
        return self._process.pid

    def open(self, wait_s: float) -> None:
        """Have a session with a device, whose end is not near; wait up to ``wait_s`` s for one.

        Raises ``NoneFree`` when no device was free, ``DeviceLost`` when none could be used.
        """
        if self._facts is not None and self._is_lost():
            self._facts = None
            self._process.stop()
        if self._facts is not None and time.monotonic() - self._opened_at > self._lease_s / 2:
            self.release()
        if self._facts is not None:
            return
        errors = []
        for _attempt in range(_ATTEMPTS):
            self._check_not_closed()
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
                        "lease_s": self._lease_s,
                        "wait_s": wait_s,
                        "runs_on": self._address.runs_on,
                        "cores": self._address.cores,
                    },
                    timeout_s=wait_s + self._config.answer_timeout_s,
                )
                self._opened_at, self._opened_by = time.monotonic(), self._process.pid
                return
            except RemoteFailure as error:
                errors.append(f"{error.kind}: {error.message}")
                if error.kind == "NoDevice":
                    raise NoneFree(self._described(error.message)) from None
                if error.kind in ("WrongThreads", "WrongCores", "NoSuchPlace"):
                    break
            except (ProcessDied, ProcessTimeout) as error:
                errors.append(str(error))
            if self._local is not None:
                self._local.restart()
        raise DeviceLost(self._described(errors[-1]))

    def measure(self, key: str, library: Library) -> Measurement:
        config = self._config
        answer = self._ask(
            "program",
            {
                "path": str(library.path),
                "arguments": [list(argument) for argument in library.arguments],
                "repeats": config.program_repeats,
                "min_repeat_ms": config.program_min_repeat_ms,
                "cold": library.is_timed_cold,
            },
        )
        return self._measurement(answer["run_ms"], answer, self._facts or {})

    def measure_all(self, questions: Sequence[Question]) -> Answers:
        return one_by_one(self.measure, questions)

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        answer = self._ask_twice(
            "check",
            {
                "reference": str(reference.path),
                "path": str(library.path),
                "arguments": [list(argument) for argument in library.arguments],
                "seed": 0,
            },
            alone=False,
            patience=self._config.answer_timeout_s,  # the untuned program may be slow
        )
        return OutputCheck(answer["max_abs_error"], answer["max_abs_output"])

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        config = self._config
        within_s = min(config.answer_timeout_s, config.session_timeout_s) / 3
        answer = self._ask_twice(
            "pair",
            {
                "reference": str(reference),
                "candidate": str(candidate),
                "input_shape": list(input_shape),
                "least": config.model_repeats,
                "most": config.model_max_repeats,
                "within_s": within_s,
                "min_repeat_ms": config.model_min_repeat_ms,
                "seed": 0,
            },
            patience=1
            + config.answer_timeout_s
            + within_s
            + config.model_repeats * config.model_min_repeat_ms / 1000,
        )
        facts = self._facts or {}  # the canary may lose the session, and what is known of it
        self._look_at_canary()
        return Comparison(
            reference_ms=tuple(answer["reference_ms"]),
            candidate_ms=tuple(answer["candidate_ms"]),
            reference=self._measurement(answer["reference_ms"], answer, facts),
            candidate=self._measurement(answer["candidate_ms"], answer, facts),
        )

    def attribute(
        self, key: str, network: Path, input_shape: tuple[int, ...]
    ) -> Attribution | None:
        answer = self._ask_twice(
            "attribute",
            {"path": str(network), "input_shape": list(input_shape), "seed": 0},
            patience=self._config.answer_timeout_s,  # for 15 inferences
        )
        if "calls" not in answer:
            return None
        return Attribution(answer["model_ms"], tuple((name, ms) for name, ms in answer["calls"]))

    def run(
        self, key: str, network: Path, images: np.ndarray[Any, Any], batch_size: int
    ) -> np.ndarray[Any, Any]:
        answer = self._ask_twice(
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
        with self._cores.measuring(CORES_WAIT_S):
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
        self._is_closed = True
        self._process.stop()
        self._facts = None

    @property
    def _lease_s(self) -> int:
        return self._config.session_timeout_s

    def _check_not_closed(self) -> None:
        """Another thread may close the gauge at any time, which is no program's failure."""
        if self._is_closed:
            raise DeviceLost(self._described("given up, since the gauge was closed"))

    def _described(self, what: str) -> str:
        address = self._address
        return f"device {address.key!r} of the tracker at {address.host}:{address.port}: {what}"

    def _ask_twice(self, method: str, request: dict[str, Any], **how: Any) -> dict[str, Any]:
        """``_ask`` about what has run before, and once more where the session ended over it.

        That is hardly its doing: the device may have been killed for its memory.
        """
        with suppress(_SessionEnded):
            return self._ask(method, request, **how)
        return self._ask(method, request, **how)

    def _ask(
        self, method: str, request: dict[str, Any], *, alone: bool = True, patience: float = 0.0
    ) -> dict[str, Any]:
        """Open a session if there is none, ask, and tell a program's failure from the device's.

        A library after which the device still answers, or a local one that is started again, is
        tried once: it failed. ``alone``: nothing else of ours runs on shared cores meanwhile.
        Raises ``ProgramFailed`` or ``DeviceLost``.
        """
        limit_s = self._config.answer_timeout_s + 2 * patience
        token = self.alone() if alone else nullcontext()
        with token:  # first: a session ends while we wait for the cores
            self.open(self._config.device_wait_s)
            device = self._facts or {}
            began = time.monotonic()
            failed: type[ProgramFailed] = _SessionEnded
            try:
                return self._process.call(method, request, timeout_s=limit_s)
            except RemoteFailure as error:
                lines = error.message.strip().splitlines() or [""]
                failure = f"{error.kind}: {lines[-1][:300]}"
                failed = ProgramFailed if error.kind == _RAISED_THERE else _SessionEnded
            except ProcessTimeout:
                failure = f"no answer within {limit_s:g} s (see measure.answer_timeout_s)"
            except ProcessDied as error:
                failure = f"the measuring process died: {error}"
            finally:
                self.device_s += time.monotonic() - began
        self._check_not_closed()
        self._recover()
        host, port = device["address"]
        if self._local is None and not answers(host, port, _PROBE_S):
            raise DeviceLost(self._described(f"{device['device']} was lost: {failure}"))
        raise failed(failure)

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
        """Note its ratio, where the device has one."""
        facts = self._facts
        if facts is None or facts["canary_ratio"] is None:
            return
        try:
            with self.alone():
                answer = self._process.call("canary", timeout_s=self._config.answer_timeout_s)
            facts["canary_ratio"] = answer["ratio"]
        except (ProcessDied, ProcessTimeout, RemoteFailure):
            self._facts = None
            self._process.stop()

    def _measurement(
        self, run_ms: list[float], answer: dict[str, Any], facts: dict[str, Any]
    ) -> Measurement:
        return Measurement(
            run_ms=tuple(run_ms),
            device=facts["device"],
            device_kind="simulated" if facts["simulated"] else self._address.kind,
            threads=facts["threads"],
            temperature_c=facts["temperature_c"],
            canary_ratio=facts["canary_ratio"],
            measured_at=answer["measured_at"],
        )
