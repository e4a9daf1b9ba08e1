"""Builders on the other machines of a Ray cluster: one actor on each, as long as a run lasts.

They take none of Ray's CPUs, so that trainings are scheduled as without them; on a machine whose
cores are all in use a build takes longer, no more.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from device_agents.host_cores import HostCores, lock_dir
from workers.compiling.builder import Builder, BuildJob
from workers.compiling.fan_out import BuilderLost, Built
from workers.owned_folder import OwnedFolder

_START_S = 120.0
_MOST_STARTS = 3
_GRACE_S = 60.0
_CLOSE_S = 5.0  # less than a tuning actor has for all of its closing


class BuilderActor:
    """A ``Builder`` on the machine that Ray put it on: one build at a time, ``close`` at any."""

    def __init__(self, target: dict[str, Any], parallel: int) -> None:
        cores = HostCores(lock_dir(), "host")  # this machine may be one that measures, too
        self._builder = Builder(target, parallel, cores, lock_dir())
        self._folder: OwnedFolder | None = None
        self._serial = 0

    def machine(self) -> str:
        """The processor architecture: a library is linked for the machine that builds it."""
        return platform.machine()

    def build(self, jobs: list[tuple[str, str]], timeout_s: float) -> list[Built]:
        """Build modules (JSON text, form)."""
        if self._folder is None:
            self._folder = OwnedFolder("cprune-builds-")
        named = []
        for module, form in jobs:
            self._serial += 1
            path = self._folder.path / f"program-{self._serial}.so"
            named.append(BuildJob(module, path, form))  # type: ignore[arg-type]
        found = []
        for library in self._builder.build(named, timeout_s):
            data = b"" if library.error else library.path.read_bytes()
            library.path.unlink(missing_ok=True)
            found.append(
                Built(data, library.arguments, library.seconds, library.error, library.unfinished)
            )
        return found

    @ray.method(concurrency_group="control")
    def close(self) -> None:
        """End the builder's process, in the middle of a build, too, and remove its folder."""
        self._builder.close()
        if self._folder is not None:
            self._folder.remove()


@dataclass
class _RayBuilder:
    """A ``DistantBuilder`` in Ray."""

    actor: Any
    parallel: int
    is_lost: bool = False

    def build(self, jobs: Sequence[BuildJob], timeout_s: float) -> list[Built]:
        texts = [(job.module, job.form) for job in jobs]
        limit_s = _START_S + _GRACE_S + (timeout_s + 1) * len(jobs)
        try:
            built: list[Built] = ray.get(self.actor.build.remote(texts, timeout_s), timeout=limit_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            self.is_lost = True
            raise BuilderLost(str(error)) from error
        return built


class RayBuilders:
    """The builders of a cluster's other machines, for one target."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._target = target
        self._here = ray.get_runtime_context().get_node_id()
        self._known: dict[str, _RayBuilder | None] = {}
        """By machine; None for one that cannot build for this one."""
        self._failed_starts: dict[str, int] = defaultdict(int)
        self._is_closed = False

    def __call__(self) -> list[_RayBuilder]:
        """Those of the machines that are there now; machines that are new get one."""
        if self._is_closed:
            return []
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for name in [name for name in self._known if name not in nodes]:
            del self._known[name]
        for name, node in nodes.items():
            known = self._known.get(name)
            if known is not None and known.is_lost:
                ray.kill(known.actor)  # it may only be late, and would build on
            if name != self._here and (name not in self._known or (known and known.is_lost)):
                self._known[name] = self._started(name, int(node["Resources"].get("CPU", 0)))
                if self._known[name] is None and 0 < self._failed_starts[name] < _MOST_STARTS:
                    del self._known[name]  # it may only have been slow: asked again next time
        return [builder for builder in self._known.values() if builder is not None]

    def close(self) -> None:
        """End all of them; there are none from then on."""
        self._is_closed = True
        builders = [builder for builder in self._known.values() if builder is not None]
        self._known.clear()
        closing = [builder.actor.close.remote() for builder in builders]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for builder in builders:
            ray.kill(builder.actor)

    def _started(self, node: str, cpus: int) -> _RayBuilder | None:
        if cpus < 1:
            return None
        cluster: Any = ray
        actor = (
            cluster.remote(concurrency_groups={"control": 1})(BuilderActor)
            .options(
                num_cpus=0,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self._target, cpus)
        )
        try:
            machine = ray.get(actor.machine.remote(), timeout=_START_S)
        except (ray.exceptions.RayError, TimeoutError):
            ray.kill(actor)
            self._failed_starts[node] += 1
            return None
        if machine != platform.machine():
            ray.kill(actor)
            return None
        return _RayBuilder(actor, cpus)
