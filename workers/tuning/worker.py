"""The tuning worker: everything of one target that needs the compiler or the device.

Holds the warm processes (builder, gauge), the target's device and the imported networks for as long
as the run lasts, and turns units of work into outcomes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from device_agents.host_cores import CORES_WAIT_S
from schemas.target import TargetConfig
from schemas.work import CompareWork, ExportWork, Outcome, ScreenWork, Tuned, TuneWork, Work
from workers.artifacts import ArtifactStore
from workers.compiling.builder import Builder, ProgramBuilder
from workers.compiling.fan_out import DistantBuilders, FanOut
from workers.compiling.programs import ScheduleSpace
from workers.context import RunContext
from workers.export.deployment import Exporter
from workers.measuring.recording import UnbuiltPrograms
from workers.measuring.setup import Device, open_device
from workers.networks import Networks
from workers.protocols import ProgramTable
from workers.tuning.bundle import Bundles
from workers.tuning.libraries import NetworkLibraries
from workers.tuning.screening import Screener
from workers.tuning.search import target_of
from workers.tuning.searchers import Searchers
from workers.tuning.trials import Trials
from workers.tuning.tuner import Tuner


class TuningWorker:
    """Tunes, screens, compares and exports networks for one target."""

    def __init__(
        self,
        context: RunContext,
        target_name: str,
        table: ProgramTable,
        distant: Callable[[dict[str, Any]], DistantBuilders] | None = None,
    ) -> None:
        """Starts the device (for a local one) and the warm processes.

        ``distant`` gives the builders on other machines for a target, where there may be some.
        Raises ``UserError`` for a target this machine cannot meet, ``DeviceLost`` when the device
        does not come up.
        """
        config = context.config
        target: TargetConfig = next(t for t in config.targets if t.name == target_name)
        self._scratch = Path(context.run_dir) / "scratch" / target_name
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        self._device: Device = open_device(
            target, config.measure, Path(context.lock_dir), self._scratch
        )
        with ExitStack() as failing:
            failing.callback(self._device.close)
            self._cores = self._device.cores
            self._builder = Builder(
                self._device.tvm_target,
                parallel=self._device.build_processes,
                cores=self._cores,
                lock_dir=Path(context.lock_dir),
            )
            compiled_for = target_of(self._device.tvm_target)
            space = ScheduleSpace(compiled_for)
            networks = Networks(config, ArtifactStore(context.artifacts))
            bundles = Bundles(networks, compiled_for)
            gauge = self._device.gauge
            self._distant = None if distant is None else distant(self._device.tvm_target)
            programs = self._programs(target)
            cache_bytes = self._device.cache_bytes
            self._trials = Trials(
                programs,
                gauge,
                space,
                table,
                config.tune,
                self._scratch,
                lambda: bundles.dense.relax.weight_bytes > cache_bytes,
            )
            self._searchers = Searchers(
                self._device.tvm_target,
                self._device.build_processes,
                self._cores,
                Path(context.lock_dir),
                self._scratch,
            )
            self._tuner = Tuner(
                bundles,
                space,
                self._searchers,
                self._trials,
                gauge,
                table,
                config.tune,
                config.seed,
                self._working,
                searches_meanwhile=target.device == "tracker",
            )
            self._screener = Screener(
                bundles, space, self._tuner, self._trials, gauge, config.tune, self._working
            )
            self._libraries = NetworkLibraries(
                bundles, self._tuner, self._builder, gauge, config, self._scratch
            )
            self._exporter = Exporter(
                Path(context.run_dir),
                target,
                networks,
                bundles,
                self._tuner,
                self._libraries,
                gauge,
                threads=self._device.build_processes,
                working=self._working,
            )
            failing.pop_all()

    def run(self, works: Sequence[Work]) -> list[Outcome]:
        """Carry out units of work: screenings together, others one after the other."""
        screenings = [work for work in works if isinstance(work, ScreenWork)]
        screened = iter(self._screener.screen(screenings) if screenings else ())
        return [next(screened) if isinstance(w, ScreenWork) else self._one(w) for w in works]

    def _one(self, work: Work) -> Outcome:
        if isinstance(work, TuneWork):
            return self._tuned(work)
        if isinstance(work, CompareWork):
            return self._libraries.compare(work)
        if isinstance(work, ExportWork):
            return self._exporter.export(work)
        raise TypeError(f"a tuning worker does no {work.kind} work")

    def _tuned(self, work: TuneWork) -> Tuned:
        """Search, then choose among finalists inside the network: both are the work's cost."""
        began, device_s = time.monotonic(), self._device.gauge.device_s
        tuned = self._tuner.tune(work)
        if work.network is not None:
            tuned = self._libraries.chosen_inside(tuned, work.network, work.key, work.fraction)
        spent_s = self._device.gauge.device_s - device_s
        return tuned.model_copy(update={"device_s": spent_s, "wall_s": time.monotonic() - began})

    def close(self) -> None:
        """End the warm processes and a local device; remove the scratch folder."""
        self._trials.close()
        if self._distant is not None:
            self._distant.close()
        self._builder.close()
        self._searchers.close()
        self._device.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _programs(self, target: TargetConfig) -> ProgramBuilder:
        if target.device == "replay":
            return UnbuiltPrograms(self._builder)
        if self._distant is None:
            return self._builder
        return FanOut(self._builder, self._device.build_processes, self._distant)

    def _working(self) -> AbstractContextManager[None]:
        return self._cores.working(CORES_WAIT_S) if self._cores else nullcontext()
