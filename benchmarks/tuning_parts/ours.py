"""Our search: the tuner on a local device, set up as a run sets it up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from workbench import TARGET, workbench

from orchestrator.store.memory import MemoryLedger
from schemas.config import MeasureConfig, TuneConfig
from schemas.table import Program
from schemas.work import TuneWork
from tuning_parts import LAYERS
from tuning_parts.log import Loss, SearchLog
from tuning_parts.network import three_layers
from workers.compiling.builder import Builder, BuildJob, Library
from workers.compiling.tasks import build_table
from workers.tuning.bundle import Bundle

PROGRAMS = "programs.json"


def tune_ours(folder: Path, seed: int, trials_per_task: int, threads: int) -> None:
    """Tune the three convolutions; the fastest program of each goes to ``folder``, by layer."""
    log = SearchLog(folder)
    config = TuneConfig(min_trials_per_task=trials_per_task)  # each gets as many as stock gives it
    noted: list[_NotedBuilds] = []

    def noting(builder: Builder) -> _NotedBuilds:
        noted.append(_NotedBuilds(builder, log))
        return noted[0]

    programs = _NotedPrograms(noted, log)
    with workbench(
        programs, folder, config, MeasureConfig(), threads=threads, seed=seed, noting=noting
    ) as bench:
        relax = three_layers(bench.target)
        table = build_table(relax, bench.target)
        bundle = Bundle(relax, table.network, table.workloads)
        work = TuneWork(
            target=TARGET, network=None, trials_per_task=trials_per_task, modules=LAYERS
        )
        tuned = bench.tuner.tune_bundle(work, bundle)
        log.note("end")
        traces = {program.program_id: program.trace for program in programs.all_programs()}
        found = {
            module: traces[entry.program_id]
            for entry in tuned.latencies
            if entry.program_id
            for module in bundle.table.modules(entry.task_id)
        }
        (folder / PROGRAMS).write_text(json.dumps(found))


class _NotedBuilds:
    """A builder that notes every program it could not build."""

    def __init__(self, builder: Builder, log: SearchLog) -> None:
        self._builder = builder
        self._log = log
        self.errors: set[str] = set()

    def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
        libraries = self._builder.build(jobs, timeout_s)
        for job, library in zip(jobs, libraries, strict=True):
            if library.error and job.form == "program":
                self._log.note(_loss(library.error), library.error)
                self.errors.add(library.error)
        return libraries


class _NotedPrograms(MemoryLedger):
    """The programs; each that was built is noted when its measurement, or its failure, comes in."""

    def __init__(self, builds: list[_NotedBuilds], log: SearchLog) -> None:
        super().__init__()
        self._builds = builds
        self._log = log

    def add_programs(self, programs: Sequence[Program]) -> None:
        super().add_programs(programs)
        for program in programs:
            if program.measurement is not None:
                self._log.note("measured")
            elif not any(program.error in builds.errors for builds in self._builds):
                self._log.note("other", program.error)

    def all_programs(self) -> list[Program]:
        """Every program that was tried."""
        return list(self._programs.values())


def _loss(error: str) -> Loss:
    if error.startswith("took longer than"):
        return "time-out"
    if error.startswith(("waited longer than", "the builder was replaced")):
        return "other"
    return "compile error"
