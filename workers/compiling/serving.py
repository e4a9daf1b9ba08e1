"""What the warm processes that build and search have in common: a request's jobs, in children."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tvm.target import Target

from device_agents.host_cores import CORES_WAIT_S, HostCores
from workers.compiling.forked import run_forked
from workers.compiling.intrinsics import load_intrinsics

_GRACE_S = 10.0  # a child says itself that it waited in vain


def run_requested(
    jobs: Sequence[Callable[[], dict[str, Any]]], request: dict[str, Any]
) -> list[dict[str, Any]]:
    """The jobs' results in order, as ``run_forked`` has them.

    The request says ``target``, ``timeout_s`` (for each job alone), ``parallel``, ``folder`` (for
    temporary files) and ``cores``: folder of the locks and name of the cores that each job shares
    with others, or None.
    """
    load_intrinsics(Target(request["target"]))  # here, for all children: each would need 0.2 s
    return run_forked(
        jobs,
        timeout_s=request["timeout_s"],
        wait_s=CORES_WAIT_S + _GRACE_S,
        parallel=request["parallel"],
        working=_working(request["cores"]),
        folder=Path(request["folder"]),
    )


def _working(cores: list[str] | None) -> Callable[[], AbstractContextManager[None]]:
    if cores is None:
        return nullcontext
    lock_dir, name = cores
    return lambda: HostCores(Path(lock_dir), name).working(CORES_WAIT_S)
