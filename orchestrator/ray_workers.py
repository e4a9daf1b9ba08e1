"""The workers in Ray: a task for each training, an actor per target for what needs its device.

Nothing is waited for here without a deadline. Failures are sorted into the classes that have a
retry budget of their own.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from pydantic import TypeAdapter

from device_agents.host_cores import lock_dir
from device_agents.local import DeviceLost
from device_agents.processes import ProcessDied, ProcessTimeout
from device_agents.session import DeviceSilent, NoDevice
from orchestrator.dispatch import Finished, Workers, is_training
from orchestrator.policies.retry import Failure, FailureClass
from orchestrator.reaper import MARK, start_reaper
from orchestrator.store.base import Ledger, LedgerError
from orchestrator.store.reader import LEDGER
from orchestrator.store.sharing import sharing_of
from orchestrator.table_actor import (
    LedgerClient,
    TableClient,
    ray_expected,
    start_table,
    this_node,
)
from schemas.config import RunConfig
from schemas.work import Outcome, Work
from workers.context import RunContext
from workers.errors import LimitReached, UserError

CLOSE_TIMEOUT_S = 10.0
"""How long a tuning actor may take to end its processes before it is killed."""
FETCH_TIMEOUT_S = 60.0
"""How long the fetching of a finished outcome may take."""

_WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of a trainer that wait must not spin on cores that others compute or measure on."""

_ACTOR_IS_GONE = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
_GPU_PARTS = 10_000
"""Ray rounds shares of a GPU to so many parts, and six rounded up would not fit."""

_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
_log = logging.getLogger(__name__)


def open_ray(config: RunConfig, run_dir: Path) -> tuple[Ledger, Workers]:
    """Connect to Ray, or start it on this machine; the run's ledger and workers in it."""
    connection = _connect(config)
    folder = run_dir.absolute()
    ledger = _RayLedger(start_table(folder / LEDGER, sharing_of(config)), connection)
    context = RunContext(
        run_dir=str(folder),
        artifacts=str(folder / "artifacts"),
        lock_dir=str(lock_dir()),
        config=config,
    )
    Path(context.artifacts).mkdir(parents=True, exist_ok=True)
    return ledger, RayWorkers(context, ledger.for_workers())


class RayWorkers:
    """``Workers`` in Ray."""

    def __init__(self, context: RunContext, table: TableClient) -> None:
        self._context_json = context.model_dump_json()
        self._table = table
        self._actors: dict[str, Any] = {}
        self._targets: dict[Hashable, str | None] = {}
        self._trainings_at_once = context.config.fine_tune.max_parallel
        # Elsewhere in a cluster, or after a start anew, it would be another device.
        self._local = {target.name for target in context.config.targets if target.device == "local"}

    def submit(self, works: Sequence[Work]) -> Hashable:
        """A task for a training, a call of the target's actor for the rest."""
        texts, target = [work.model_dump_json() for work in works], None
        with ray_expected(works[0].kind):
            if is_training(works[0]):
                ref = self._training().remote(*texts, self._context_json)
            else:
                target = str(getattr(works[0], "target", ""))
                ref = self._actor(target).run.remote(texts)
        self._targets[ref] = target
        return _handle(ref)

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Finished]:
        """What ends first, and all that has ended with it."""
        refs: list[Any] = list(handles)
        with ray_expected("work in flight"):
            ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
            if ready:
                ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._finished(ref) for ref in ready]

    def cancel(self, handles: Sequence[Hashable]) -> None:
        """Interrupt trainings; end the actors of the others, as a search cannot be interrupted."""
        for ref in handles:
            target = self._targets.pop(ref, None)
            if target is None:
                ray.cancel(ref, recursive=True)
            else:
                self._end([target])

    def close(self) -> None:
        """End every training and every actor."""
        trainings = [ref for ref, target in self._targets.items() if target is None]
        for ref in trainings:
            ray.cancel(ref, force=True, recursive=True)
        self._targets.clear()
        self._end(list(self._actors))

    def _training(self) -> Any:
        """What runs one; its needs are those of the machines that are there now."""
        from workers.ray_entry import run_training

        cluster: Any = ray
        machines = [node["Resources"] for node in cluster.nodes() if node["Alive"]]
        needs = training_needs(machines, self._trainings_at_once)
        return ray.remote(run_training).options(max_retries=0, **needs)

    def _actor(self, target: str) -> Any:
        """The target's actor; a new one when there is none, or it has died."""
        if target not in self._actors:
            from workers.ray_entry import TuningActor

            cluster: Any = ray
            actor = cluster.remote(concurrency_groups={"control": 1})(TuningActor)
            options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
            if target in self._local:
                options["label_selector"] = this_node()
            self._actors[target] = actor.options(**options).remote(
                self._context_json, target, self._table
            )
        return self._actors[target]

    def _finished(self, ref: Any) -> Finished:
        target = self._targets.pop(ref, None)
        try:
            texts = ray.get(ref, timeout=FETCH_TIMEOUT_S)
        except Exception as error:
            failure = sort_failure(error)
            if isinstance(error, _ACTOR_IS_GONE) and target in self._actors:
                ray.kill(self._actors.pop(str(target)))
            if failure.kind == "internal_error":
                _log.error("work failed", exc_info=error)
            return Finished(handle=ref, failure=failure)
        outcomes = tuple(_OUTCOME.validate_json(text) for text in texts)
        return Finished(handle=ref, outcomes=outcomes)

    def _end(self, targets: Sequence[str]) -> None:
        actors = [self._actors.pop(target) for target in targets if target in self._actors]
        closing = [actor.close.remote() for actor in actors]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
        for actor in actors:
            ray.kill(actor)


def training_needs(machines: Sequence[Mapping[str, float]], at_once: int) -> dict[str, float]:
    """What Ray is to give each of ``at_once`` trainings: where there are GPUs one of them, or its
    share where they are too few, with as much of their machine's CPUs, which read the images;
    otherwise the CPUs that each can have anywhere."""
    with_gpus = [machine for machine in machines if machine.get("GPU", 0.0) >= 1.0]
    if with_gpus:
        sharing = math.ceil(at_once / sum(machine["GPU"] for machine in with_gpus))
        cpus = min(machine.get("CPU", 0.0) / machine["GPU"] for machine in with_gpus) / sharing
        share = math.floor(_GPU_PARTS / sharing) / _GPU_PARTS
        return {"num_gpus": share, "num_cpus": max(1, int(cpus))}
    cpus = min((m["CPU"] for m in machines if m.get("CPU", 0.0) >= 1.0), default=1.0)
    return {"num_cpus": max(1, int(cpus / at_once))}


def sort_failure(error: Exception) -> Failure:
    """The class of failure an error from a worker belongs to."""
    cause: BaseException = error
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        cause = error.cause
    kind: FailureClass = "internal_error"
    if isinstance(cause, LimitReached):  # by a busy machine, perhaps: no wrong input
        kind = "system_error"
    elif isinstance(cause, UserError):
        kind = "user_error"
    elif isinstance(cause, NoDevice | DeviceSilent | DeviceLost | ConnectionError):
        kind = "device_lost"
    elif isinstance(cause, ProcessDied | ProcessTimeout):
        kind = "worker_lost"
    elif isinstance(
        cause,
        ray.exceptions.RayActorError
        | ray.exceptions.WorkerCrashedError
        | ray.exceptions.NodeDiedError
        | ray.exceptions.LocalRayletDiedError
        | ray.exceptions.ObjectLostError
        | ray.exceptions.OutOfMemoryError
        | ray.exceptions.GetTimeoutError,
    ):
        kind = "worker_lost"
    elif isinstance(cause, TimeoutError):
        kind = "timed_out"
    elif isinstance(cause, OSError | LedgerError):  # a full disk, say: its text says what it is
        kind = "system_error"
    lines = str(cause).strip().splitlines()
    text = lines[0] if lines else ""
    if kind == "internal_error":  # its text alone may be as little as a missing key
        text = f"{type(cause).__name__}: {text}"
    return Failure(kind=kind, message=text or type(cause).__name__)


class _RayLedger(LedgerClient):
    """The driver's ledger, which takes Ray down with it when this process started Ray."""

    def __init__(self, actor: Any, connection: _Connection) -> None:
        super().__init__(actor)
        self._connection = connection

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._connection.close()


class _Connection:
    """This process's connection to Ray: whether it was made here, and the reaper of a Ray that was
    started here."""

    def __init__(self, made_here: bool, reaper: subprocess.Popen[bytes] | None = None) -> None:
        self._made_here = made_here
        self._reaper = reaper

    def close(self) -> None:
        """Disconnect, ending a Ray that was started here. Closing again does nothing."""
        if self._made_here:
            self._made_here = False
            ray.shutdown()
        if self._reaper is not None and self._reaper.stdin is not None:
            os.environ.pop(MARK, None)
            self._reaper.stdin.close()
            self._reaper = None


def _connect(config: RunConfig) -> _Connection:
    """Connect to the cluster that the configuration or RAY_ADDRESS names, or start Ray here."""
    if ray.is_initialized():
        return _Connection(made_here=False)
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    with _own_handler(signal.SIGTERM):
        return _start(config, address)


def _start(config: RunConfig, address: str | None) -> _Connection:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, runtime_env={"env_vars": _WORKER_ENVIRONMENT}, **quiet)
    else:
        # Ray's workers are nice to others by default; a device server among them must not be.
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.update(_WORKER_ENVIRONMENT)
        reaper = start_reaper()
        ray.init(
            address="local",
            num_cpus=config.cluster.worker_cpus,
            include_dashboard=False,
            **quiet,
        )
        return _Connection(made_here=True, reaper=reaper)
    return _Connection(made_here=True)


@contextmanager
def _own_handler(number: signal.Signals) -> Iterator[None]:
    """Put back how this process takes the signal: Ray's way prints its stack first."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _handle(ref: Any) -> Hashable:
    handle: Hashable = ref
    return handle
