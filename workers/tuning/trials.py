"""Building, checking and measuring programs, and storing what came of it.

One trial is one program that was built and measured, or failed at it. Each is stored the moment it
is known, so that a run that is killed repeats none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvm.ir import save_json
from tvm.s_tir import Schedule

from schemas.config import TuneConfig
from schemas.table import Program
from workers.compiling.builder import BuildJob, Library, ProgramBuilder
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import Workload
from workers.compiling.trace import factors_of_loop
from workers.errors import UserError
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
        builder: ProgramBuilder,
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
        beside: Library | None = None,
    ) -> list[Program]:
        """Measure each program and store it at once. Outputs are not compared here: see ``check``.

        ``beside`` is a library measured first, on the same stretch: what drifts on the device
        between two stretches cancels out of the programs' ratios to it.
        """
        programs = []
        with self._gauge.alone() if trials else nullcontext():
            beside_ms = self._beside_ms(beside, batch, workload) if trials else None
            for trial, library in zip(trials, libraries, strict=True):
                program = self._one(workload, trial, library, batch, beside_ms)
                self._table.add_programs([program])
                programs.append(program)
                library.path.unlink(missing_ok=True)
        return programs

    def check(self, suspects: Sequence[tuple[Workload, Program]]) -> list[Program]:
        """Compare programs with the untuned ones on random inputs; store and return the verdicts.

        A program that computes something else, or does not run with its weights packed inside,
        comes back without its measurement and with the reason. Raises ``UserError`` when an untuned
        program does not build.
        """
        schedules = [self._space.replay(w.module, p.trace) for w, p in suspects]
        texts = [str(save_json(schedule.mod)) for schedule in schedules]
        new = {w.task.task_id: w for w, _ in suspects if w.task.task_id not in self._untuned}
        texts += [str(save_json(workload.module)) for workload in new.values()]
        libraries = self._built_wholes(texts)
        for workload, library in zip(new.values(), libraries[len(suspects) :], strict=True):
            if library.error:
                raise UserError(
                    "tune.build_timeout_s",
                    f"the untuned program of {workload.task.name}, which its programs' outputs are "
                    f"compared with, did not build: {library.error}",
                    "raise it where the build took too long",
                )
            self._untuned[workload.task.task_id] = library
        checked = []
        for (workload, program), library in zip(suspects, libraries[: len(suspects)], strict=True):
            verdict = self._verdict(program, self._untuned[workload.task.task_id], library)
            update: dict[str, object] = {"measurement": None, "error": verdict}
            if isinstance(verdict, float):
                update = {"max_abs_error": verdict}
            checked.append(program.model_copy(update=update))
            self._table.record_check(checked[-1])
            library.path.unlink(missing_ok=True)
        return checked

    def close(self) -> None:
        """Start no more builds; the one in flight ends with the builder."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _built_wholes(self, texts: Sequence[str]) -> list[Library]:
        """Libraries for comparing; one that did not build is built once more.

        The builder may have been replaced, which says nothing of the program.
        """

        def build(texts: Sequence[str]) -> list[Library]:
            jobs = [BuildJob(text, self._new_path("whole"), "whole") for text in texts]
            timeout_s = self._config.build_timeout_s
            return self._thread.submit(self._builder.build, jobs, timeout_s).result()

        libraries = build(texts)
        failed = [position for position, library in enumerate(libraries) if library.error]
        again = build([texts[position] for position in failed])
        for position, library in zip(failed, again, strict=True):
            libraries[position] = library
        return libraries

    def _beside_ms(self, beside: Library | None, batch: str, workload: Workload) -> float | None:
        if beside is None:
            return None
        key = f"beside:{batch}:{workload.task.task_id}"
        if beside.error:
            self._gauge.not_asked(key, beside.error)
            return None
        try:
            return self._gauge.measure(key, beside).latency_ms
        except ProgramFailed:
            return None

    def _one(
        self,
        workload: Workload,
        trial: Trial,
        library: Library,
        batch: str,
        beside_ms: float | None,
    ) -> Program:
        error, measurement = library.error, None
        if error:
            self._gauge.not_asked(trial.program_id, error)
        else:
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
            beside_ms=beside_ms,
            measurement=measurement,
            error=error,
        )

    def _verdict(self, program: Program, reference: Library, library: Library) -> float | str:
        """The largest difference of the outputs, or what is wrong."""
        if library.error:
            self._gauge.not_asked(f"check:{program.program_id}", library.error)
            return f"did not build for the comparison: {library.error}"
        try:
            check = self._gauge.check(f"check:{program.program_id}", reference, library)
        except ProgramFailed as failure:
            return f"the comparison with the untuned program failed: {failure}"
        if not check.max_abs_error <= _TOLERANCE * max(1.0, check.max_abs_output):
            return (
                f"wrong result: differs by {check.max_abs_error:g} from the untuned program, whose "
                f"largest output is {check.max_abs_output:g}"
            )
        return check.max_abs_error

    def _new_path(self, kind: str) -> Path:
        with self._serial_lock:
            self._serial += 1
            return self._scratch / f"{kind}-{self._serial}.so"


def fastest(programs: Iterable[Program]) -> Program | None:
    """The program with the least latency; None when none ran."""
    ran = [program for program in programs if program.measurement is not None]
    return min(ran, key=lambda program: (program.latency_ms, program.program_id), default=None)
