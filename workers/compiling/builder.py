"""The builder: a warm process that compiles, and never takes its caller down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from device_agents.host_cores import CORES_WAIT_S, HostCores
from device_agents.processes import ProcessDied, ProcessTimeout, WarmProcess

Unfinished = Literal["time", "machine"]

_GRACE_S = 30.0


@dataclass(frozen=True)
class Library:
    """A built library, or why there is none.

    ``arguments`` are element type and shape of each argument of its ``main``. ``is_timed_cold``:
    all of them but the first are out of the device's caches whenever it is timed. ``unfinished``:
    the error may be no fault of the job: it took too long, or its builder was lost or its machine
    short of something.
    """

    path: Path
    arguments: tuple[tuple[str, tuple[int, ...]], ...] = ()
    seconds: float = 0.0
    error: str = ""
    unfinished: Unfinished | None = None
    is_timed_cold: bool = False


@dataclass(frozen=True)
class BuildJob:
    """One task to build: the module's JSON text, as it runs in a network or with all its inputs."""

    module: str
    path: Path
    form: Literal["program", "whole"] = "program"


class ProgramBuilder(Protocol):
    """What trials ask of a builder."""

    def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
        """Build every job; failures are in the results."""
        ...


class Builder:
    """Builds libraries for one target in a process of its own."""

    def __init__(
        self, target: dict[str, Any], parallel: int, cores: HostCores | None, lock_dir: Path
    ) -> None:
        """``parallel`` builds run at once; each takes the host's cores from ``cores``, if given."""
        self._target = target
        self._parallel = parallel
        self._cores = None if cores is None else [str(lock_dir), cores.name]
        self._process = WarmProcess("workers.compiling.build_server", name="builder")
        self._process.prepare()

    def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
        """Build every job, ``timeout_s`` for each build alone; failures are in the results."""
        if not jobs:
            return []
        items = [{"module": job.module, "path": str(job.path), "form": job.form} for job in jobs]
        limit_s = _GRACE_S + CORES_WAIT_S + (timeout_s + 1) * len(jobs)
        payload = {"items": items, "folder": str(jobs[0].path.parent)}
        answers = self._call("programs", payload, timeout_s, limit_s, len(jobs))
        return [_library(job.path, answer) for job, answer in zip(jobs, answers, strict=True)]

    def build_network(
        self,
        module: str,
        programs: list[tuple[str, str]],
        weights: dict[str, np.ndarray[Any, Any]],
        path: Path,
        timeout_s: float,
    ) -> Library:
        """Build a whole network; ``programs`` are workload texts and traces."""
        stored = path.with_suffix(".npz")
        np.savez(stored, **weights)  # type: ignore[arg-type]
        try:
            payload = {
                "module": module,
                "programs": programs,
                "weights": str(stored),
                "path": str(path),
                "folder": str(path.parent),
            }
            limit_s = _GRACE_S + CORES_WAIT_S + timeout_s
            answer = self._call("network", payload, timeout_s, limit_s, 1)[0]
        finally:
            stored.unlink(missing_ok=True)
        return _library(path, answer)

    def close(self) -> None:
        """End the builder's process."""
        self._process.stop()

    def _call(
        self, method: str, payload: dict[str, Any], timeout_s: float, limit_s: float, count: int
    ) -> list[dict[str, Any]]:
        request = {
            **payload,
            "target": self._target,
            "timeout_s": timeout_s,
            "parallel": self._parallel,
            "cores": self._cores,
        }
        try:
            # Once more where it was killed, which no job of it can have done.
            answer = self._process.call_again(method, request, timeout_s=limit_s)
        except (ProcessDied, ProcessTimeout) as error:
            lost = {"error": f"the builder was replaced: {error}", "unfinished": "machine"}
            return [lost] * count
        return list(answer["results"])


def _library(path: Path, answer: dict[str, Any]) -> Library:
    if "error" in answer:
        return Library(path, error=answer["error"], unfinished=answer.get("unfinished"))
    arguments = tuple((dtype, tuple(shape)) for dtype, shape in answer.get("arguments", ()))
    return Library(path, arguments, answer["seconds"])
