"""Thin Ray wrappers: one remote function for training, one actor for each target's tuning worker.

Work and outcomes cross as JSON, so that nothing of torch or TVM is ever unpickled elsewhere.
"""

from __future__ import annotations

import faulthandler
import functools
import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pydantic import TypeAdapter

from schemas.progress import ProgressEvent, ToldProgress
from schemas.work import Outcome, Work
from workers.context import RunContext
from workers.protocols import ProgramTable

if TYPE_CHECKING:
    from workers.tuning.worker import TuningWorker

_WORK: TypeAdapter[Work] = TypeAdapter(Work)
_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


def run_training(work_json: str, context_json: str) -> list[str]:
    """Carry out a unit of training work; its outcome as JSON. Body of the Ray task."""
    from device_agents.host_cores import CORES_WAIT_S, HostCores, lock_dir
    from workers.jobs import TrainingJobs

    context = RunContext.model_validate_json(context_json)
    work = _WORK.validate_json(work_json)
    is_here = platform.node() == context.machine
    cores = HostCores(Path(context.lock_dir) if is_here else lock_dir(), "host")
    jobs = TrainingJobs(
        _networks(context_json),
        threads=_threads(),
        yield_cores=lambda: cores.working(CORES_WAIT_S),
        progress=_progress(Path(context.run_dir), work),
    )
    return [_OUTCOME.dump_json(jobs.run(work)).decode()]


class TuningActor:
    """Ray's side of a ``TuningWorker``: one call at a time, and ``close`` at any time.

    The worker is made with the first work: an error of an actor's constructor reaches nobody as
    what it is.
    """

    def __init__(self, context_json: str, target_name: str, table: ProgramTable) -> None:
        faulthandler.enable()
        self._context = RunContext.model_validate_json(context_json)
        self._target_name = target_name
        self._table = table
        self._opening = threading.Lock()
        self._worker: TuningWorker | None = None

    def run(self, works_json: Sequence[str]) -> list[str]:
        """Carry out units of work that belong together; their outcomes as JSON."""
        works = [_WORK.validate_json(text) for text in works_json]
        return [_OUTCOME.dump_json(outcome).decode() for outcome in self._opened().run(works)]

    @ray.method(concurrency_group="control")
    def close(self) -> None:
        """End the worker's processes."""
        with self._opening:
            if self._worker is not None:
                self._worker.close()

    def _opened(self) -> TuningWorker:
        from workers.ray_builders import RayBuilders
        from workers.tuning.worker import TuningWorker

        with self._opening:
            if self._worker is None:
                self._worker = TuningWorker(
                    self._context, self._target_name, self._table, RayBuilders
                )
            return self._worker


@functools.lru_cache(maxsize=4)
def _networks(context_json: str) -> Any:
    """One run's networks and data, loaded once in a worker process."""
    from workers.artifacts import ArtifactStore
    from workers.networks import Networks

    context = RunContext.model_validate_json(context_json)
    return Networks(context.config, ArtifactStore(context.artifacts))


def _threads() -> int:
    """CPU threads for training: what Ray gave this task."""
    assigned = ray.get_runtime_context().get_assigned_resources()
    return max(1, int(assigned.get("CPU", 1)))


def _progress(run_dir: Path, work: Work) -> Any:
    """Write the training's progress where ``status`` and the driver look for it."""
    folder = run_dir / "progress"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{work.key[:24]}.json"

    def report(event: ProgressEvent) -> None:
        partial = path.with_suffix(".part")
        told = ToldProgress(what=work.kind, **event.model_dump())
        partial.write_text(told.model_dump_json())
        partial.replace(path)

    return report
