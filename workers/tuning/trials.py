"""Building, checking and measuring programs, and storing what came of it.

One trial is one program that was built and measured, or failed at it. Each is stored the moment it is
known, so that a run that is killed repeats none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvm.ir import save_json
from tvm.s_tir import Schedule

from schemas.config import TuneConfig
from schemas.table import Program
from workers.compiling.builder import Builder, BuildJob, Library
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import Workload
from workers.compiling.trace import factors_of_loop
from workers.measuring.gauge import Gauge, ProgramFailed
from workers.protocols import ProgramTable

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Trial:
    """A program to be built and measured."""

    program_id: str
    trace: str
    schedule: Schedule
    source: Literal["search", "transplant"]
    parent: str | None = None
    lineage_trials: int = 0


@dataclass
class Counts:
    """What a unit of work cost."""

    measured: int = 0
    failed: int = 0


class Trials:
    """Carries out trials on one device."""

    def __init__(
        self,
        builder: Builder,
        gauge: Gauge,
        space: ScheduleSpace,
        table: ProgramTable,
        config: TuneConfig,
        scratch: Path,
    ) -> None:
        self._builder = builder
        self._gauge = gauge
        self._space = space
        self._table = table
        self._config = config
        self._scratch = scratch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="builds")
        self._untuned: dict[str, Library] = {}
        self._serial = 0
        self._serial_lock = threading.Lock()
        self.counts = Counts()

    def build(self, trials: Sequence[Trial]) -> Future[list[Library]]:
        """Start building; the result has a library for each trial."""
        jobs = [
            BuildJob(str(save_json(trial.schedule.mod)), self._new_path("program"))
            for trial in trials
        ]
        return self._thread.submit(self._builder.build, jobs, self._config.build_timeout_s)

    def measure(
        self,
        workload: Workload,
        trials: Sequence[Trial],
        libraries: Sequence[Library],
        batch: str,
        *,
        check: bool = True,
    ) -> list[Program]:
        """Measure and store. Of transplants each one's outputs are checked first, unless the caller
        does so (``check``).

        A program that computes something else than the untuned one is stored as failed.
        """
        transplants = [trial for trial in trials if trial.source == "transplant"]
        checked = self.check(workload, transplants) if check else {}
        programs = []
        for trial, library in zip(trials, libraries, strict=True):
            program = self._one(workload, trial, library, batch, checked.get(trial.program_id))
            self._table.add_programs([program])
            programs.append(program)
            library.path.unlink(missing_ok=True)
        return programs

    def check(self, workload: Workload, trials: Sequence[Trial]) -> dict[str, float | str]:
        """Largest difference of each program's output from the untuned one's, or why it is wrong."""
        if not trials:
            return {}
        reference = self._untuned_library(workload)
        if reference.error:
            return {trial.program_id: f"untuned: {reference.error}" for trial in trials}
        jobs = [
            BuildJob(str(save_json(trial.schedule.mod)), self._new_path("whole"), "whole")
            for trial in trials
        ]
        libraries = self._thread.submit(
            self._builder.build, jobs, self._config.build_timeout_s
        ).result()
        verdicts: dict[str, float | str] = {}
        for trial, library in zip(trials, libraries, strict=True):
            verdicts[trial.program_id] = self._verdict(trial, reference, library)
            library.path.unlink(missing_ok=True)
        return verdicts

    def close(self) -> None:
        """Wait for the build in flight."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _one(
        self,
        workload: Workload,
        trial: Trial,
        library: Library,
        batch: str,
        verdict: float | str | None,
    ) -> Program:
        error = library.error or (verdict if isinstance(verdict, str) else "")
        measurement = None
        if not error:
            try:
                measurement = self._gauge.measure(trial.program_id, library)
            except ProgramFailed as failure:
                error = str(failure)
        if measurement is None:
            self.counts.failed += 1
        else:
            self.counts.measured += 1
        axes = workload.axes
        return Program(
            program_id=trial.program_id,
            task_id=workload.task.task_id,
            device_model=self._gauge.device_model,
            trace=trial.trace,
            source=trial.source,
            channel_tiles=factors_of_loop(trial.trace, axes.block, axes.output),
            reduction_tiles=factors_of_loop(trial.trace, axes.block, axes.reduction),
            parent=trial.parent,
            batch=batch,
            lineage_trials=trial.lineage_trials,
            measurement=measurement,
            error=error,
            max_abs_error=verdict if isinstance(verdict, float) else None,
        )

    def _verdict(self, trial: Trial, reference: Library, library: Library) -> float | str:
        if library.error:
            return library.error
        try:
            check = self._gauge.check(f"check:{trial.program_id}", reference, library)
        except ProgramFailed as failure:
            return str(failure)
        if not check.max_abs_error <= _TOLERANCE * max(1.0, check.max_abs_output):
            return (
                f"wrong result: differs by {check.max_abs_error:g} from the untuned program, whose "
                f"largest output is {check.max_abs_output:g}"
            )
        return check.max_abs_error

    def _untuned_library(self, workload: Workload) -> Library:
        task_id = workload.task.task_id
        if task_id not in self._untuned:
            job = BuildJob(str(save_json(workload.module)), self._new_path("untuned"), "whole")
            future = self._thread.submit(self._builder.build, [job], self._config.build_timeout_s)
            self._untuned[task_id] = future.result()[0]
        return self._untuned[task_id]

    def _new_path(self, kind: str) -> Path:
        with self._serial_lock:
            self._serial += 1
            return self._scratch / f"{kind}-{self._serial}.so"


def fastest(programs: Iterable[Program]) -> Program | None:
    """The program with the least latency; None when none ran."""
    ran = [program for program in programs if program.measurement is not None]
    return min(ran, key=lambda program: (program.latency_ms, program.program_id), default=None)
