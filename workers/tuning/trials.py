"""Building, checking and measuring programs, and storing what came of it.

One trial is one program that was built and measured, or failed at it. Each is stored the moment it
is known, so that a run that is killed repeats none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tvm.ir import save_json
from tvm.s_tir import Schedule

from schemas.config import TuneConfig
from schemas.table import WRONG_RESULT, Measurement, Program
from workers.compiling.builder import BuildJob, Library, ProgramBuilder
from workers.compiling.programs import ScheduleSpace, program_id, trace_text
from workers.compiling.trace import factors_of_loop
from workers.compiling.workload import Workload
from workers.errors import LimitReached, UserError
from workers.measuring.gauge import Answer, Gauge, ProgramFailed, Question
from workers.protocols import ProgramTable

_TOLERANCE = 1e-3
_MORE_TIME = 6


@dataclass(frozen=True)
class Trial:
    """A program of a task to be built and measured; ``position`` is its place in the batch."""

    workload: Workload
    batch: str
    program_id: str
    trace: str
    module: str
    """JSON text of the scheduled workload."""
    source: Literal["search", "transplant"]
    parent: str | None = None
    lineage_trials: int = 0
    position: int = 0


def trial_of(
    workload: Workload,
    batch: str,
    schedule: Schedule,
    source: Literal["search", "transplant"],
) -> Trial:
    """The trial of a schedule."""
    trace = trace_text(schedule)
    identity = program_id(workload.task.task_id, trace)
    return Trial(workload, batch, identity, trace, str(save_json(schedule.mod)), source)


@dataclass(frozen=True)
class Alongside:
    """Trials and their libraries; ``beside``: of the program they are measured beside, if any."""

    beside: Library | None
    trials: Sequence[Trial]
    libraries: Sequence[Library]


@dataclass(frozen=True)
class _Item:
    """A question about a trial of a row, or (None) about the program the row is measured beside."""

    row: int
    trial: Trial | None
    question: Question


def _items(number: int, row: Alongside) -> Iterator[_Item]:
    stretch = None
    if row.beside is not None and row.trials:
        first = row.trials[0]
        key = f"beside:{first.batch}:{first.workload.task.task_id}"
        stretch = None if row.beside.error else number
        yield _Item(number, None, Question(key, row.beside, stretch))
    for trial, library in zip(row.trials, row.libraries, strict=True):
        yield _Item(number, trial, Question(trial.program_id, library, stretch))


@dataclass
class Counts:
    """What a unit of work cost."""

    measured: int = 0
    failed: int = 0

    @property
    def tried(self) -> int:
        """Programs that ran and programs that did not."""
        return self.measured + self.failed


class Trials:
    """Carries out trials on the devices of one model."""

    def __init__(
        self,
        builder: ProgramBuilder,
        gauge: Gauge,
        space: ScheduleSpace,
        table: ProgramTable,
        config: TuneConfig,
        scratch: Path,
        times_cold: Callable[[], bool] = lambda: False,
    ) -> None:
        """``times_cold``: whether programs are timed with their weights out of the caches."""
        self._builder = builder
        self._gauge = gauge
        self._space = space
        self._table = table
        self._config = config
        self._scratch = scratch
        self._times_cold = times_cold
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="builds")
        self._is_closed = False
        self._untuned: dict[str, Library] = {}
        self._serial = 0
        self._serial_lock = threading.Lock()
        self.counts = Counts()

    @property
    def measured_as(self) -> str:
        """What its programs' latencies are of: the device model, and how they are timed.

        Programs that were timed otherwise are not compared with them.
        """
        return self._gauge.device_model + (", cold" if self._times_cold() else "")

    def build(self, trials: Sequence[Trial]) -> Future[list[Library]]:
        """Start building; the result has a library for each trial."""
        jobs = [BuildJob(trial.module, self._new_path("program")) for trial in trials]
        cold = self._times_cold()

        def build() -> list[Library]:
            built = self._builder.build(jobs, self._config.build_timeout_s)
            lacking = [n for n, library in enumerate(built) if library.unfinished == "machine"]
            if lacking and not self._is_closed:  # no fault of theirs, unless it happens again
                again = [jobs[n] for n in lacking]
                rebuilt = self._builder.build(again, self._config.build_timeout_s)
                for n, library in zip(lacking, rebuilt, strict=True):
                    built[n] = library
            return [replace(library, is_timed_cold=cold) for library in built]

        return self._thread.submit(build)

    def measure(self, trials: Sequence[Trial], libraries: Sequence[Library]) -> list[Program]:
        """Measure the programs on all devices there are, and store each as soon as it is known.

        They may be of several tasks and batches. Returned are they in the order of the trials.
        Outputs are not compared here: see ``check``.
        """
        return self.measure_beside([Alongside(None, trials, libraries)])

    def measure_beside(self, rows: Sequence[Alongside]) -> list[Program]:
        """Measure rows of programs, each row on one device beside a program of its own.

        That one is measured first on the same stretch of the device: what differs between devices
        and drifts on one between two stretches cancels out of the programs' ratios to it. Rows are
        measured on all devices there are. Stored and returned as ``measure`` does.
        """
        items = [item for number, row in enumerate(rows) for item in _items(number, row)]
        if all(item.trial is None for item in items):
            return []
        asked = [n for n, item in enumerate(items) if not item.question.library.error]
        programs: dict[int, Program] = {}  # by the item's number
        beside_ms: dict[tuple[int, str], float] = {}  # row, device
        with self._gauge.alone():
            for number, item in enumerate(items):
                if item.question.library.error:
                    failed = self._not_asked(item.question.key, item.question.library)
                    if item.trial is not None:
                        programs[number] = self._stored(item, item.trial, failed, None)
            questions = [items[number].question for number in asked]
            with closing(self._gauge.measure_all(questions)) as answers:
                for index, answer in answers:
                    item = items[asked[index]]
                    place = (item.row, answer.device if isinstance(answer, Measurement) else "")
                    if item.trial is not None:
                        before = beside_ms.get(place)
                        programs[asked[index]] = self._stored(item, item.trial, answer, before)
                    elif isinstance(answer, Measurement):
                        beside_ms[place] = answer.latency_ms
        for row in rows:
            if row.beside is not None:
                row.beside.path.unlink(missing_ok=True)
        return [programs[number] for number in sorted(programs)]

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
                kind = LimitReached if library.unfinished else UserError
                raise kind(
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
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _built_wholes(self, texts: Sequence[str]) -> list[Library]:
        """Libraries for comparing; one that did not build is built once more, with more time.

        The builder may have been replaced, or the machine busy, which says nothing of the program.
        """

        def build(texts: Sequence[str], timeout_s: float) -> list[Library]:
            jobs = [BuildJob(text, self._new_path("whole"), "whole") for text in texts]
            return self._thread.submit(self._builder.build, jobs, timeout_s).result()

        timeout_s = self._config.build_timeout_s
        libraries = build(texts, timeout_s)
        failed = [position for position, library in enumerate(libraries) if library.error]
        again = build([texts[position] for position in failed], _MORE_TIME * timeout_s)
        for position, library in zip(failed, again, strict=True):
            libraries[position] = library
        return libraries

    def _not_asked(self, key: str, library: Library) -> ProgramFailed:
        self._gauge.not_asked(key, library.error)
        return ProgramFailed(library.error)

    def _stored(
        self, item: _Item, trial: Trial, answer: Answer, beside_ms: float | None
    ) -> Program:
        program = self._program(trial, answer, beside_ms)
        self._table.add_programs([program])
        item.question.library.path.unlink(missing_ok=True)
        return program

    def _program(self, trial: Trial, answer: Answer, beside_ms: float | None) -> Program:
        failed = isinstance(answer, ProgramFailed)
        self.counts.failed += failed
        self.counts.measured += not failed
        axes = trial.workload.axes
        return Program(
            program_id=trial.program_id,
            task_id=trial.workload.task.task_id,
            device_model=self.measured_as,
            trace=trial.trace,
            source=trial.source,
            channel_tiles=factors_of_loop(trial.trace, axes.block, axes.output),
            reduction_tiles=factors_of_loop(trial.trace, axes.block, axes.reduction),
            parent=trial.parent,
            batch=trial.batch,
            position=trial.position,
            lineage_trials=trial.lineage_trials,
            beside_ms=beside_ms,
            measurement=None if isinstance(answer, ProgramFailed) else answer,
            error=str(answer) if isinstance(answer, ProgramFailed) else "",
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
                f"{WRONG_RESULT}: differs by {check.max_abs_error:g} from the untuned program, "
                f"whose largest output is {check.max_abs_output:g}"
            )
        return check.max_abs_error

    def _new_path(self, kind: str) -> Path:
        with self._serial_lock:
            self._serial += 1
            return self._scratch / f"{kind}-{self._serial}.so"
