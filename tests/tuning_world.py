"""A tiny network, a tuning worker on this machine's real local device, and a table to watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.store.memory import MemoryLedger
from schemas.config import RunConfig
from schemas.network import NetworkInfo, Structure, Trained
from schemas.table import Program
from schemas.work import Candidate, ScreenWork, TuneWork
from workers.context import RunContext
from workers.tuning.tuner import Tuner
from workers.tuning.worker import TuningWorker

TARGET = "host"


class Table(MemoryLedger):
    """The programs; ``before_add`` is called before each is stored, with those stored so far."""

    before_add: Callable[[int], None] | None = None

    def add_programs(self, programs: Sequence[Program]) -> None:
        if self.before_add is not None:
            self.before_add(len(self._programs))
        super().add_programs(programs)

    def all_programs(self) -> list[Program]:
        return list(self._programs.values())

    def forget(self) -> None:
        self._programs.clear()
        self.before_add = None


def config(**changes: object) -> RunConfig:
    """A network of eight tasks on 16x16 digits, and quick measurements."""
    values: dict[str, object] = {
        "model": {"arguments": {"stem": 8, "widths": [8, 16]}},
        "data": {"image_size": 16},
        "prune": {"max_accuracy_drop": 0.5},
        "train": {"epochs": 0},
        "tune": {
            "trials_per_task": 2,
            "final_trials_per_task": 2,
            "round_size": 2,
            "population_size": 8,
            "build_timeout_s": 20.0,
        },
        "measure": {
            "program_repeats": 2,
            "program_min_repeat_ms": 1,
            "model_repeats": 3,
            "model_max_repeats": 3,
            "model_min_repeat_ms": 1,
            "answer_timeout_s": 5.0,
        },
        **changes,
    }
    return RunConfig.model_validate(values)


def context(folder: Path, **changes: object) -> RunContext:
    return RunContext(
        run_dir=str(folder),
        artifacts=str(folder / "artifacts"),
        lock_dir=str(folder / "locks"),
        config=config(**changes),
    )


def worker(folder: Path, table: Table, **changes: object) -> TuningWorker:
    return TuningWorker(context(folder, **changes), TARGET, table)


def network(**widths: int) -> Trained:
    """A network of which the tuner needs the structure alone; ``__`` stands for a dot."""
    return Trained(
        structure=Structure(widths={name.replace("__", "."): n for name, n in widths.items()}),
        weights="none",
        val_accuracy=0.0,
        info=NetworkInfo(macs=0, params=0, input_shape=(1, 1, 16, 16)),
        train_s=0.0,
        epochs=0,
    )


def tune_work(trials: int, /, *modules: str, **changes: object) -> TuneWork:
    """Tune the dense network's tasks behind ``modules``."""
    values = {"target": TARGET, "network": network(), "trials_per_task": trials, **changes}
    return TuneWork.model_validate({**values, "modules": modules or None})


def screen_work(layer: str, before: int, after: int) -> ScreenWork:
    """Screen the dense network with one layer's group cut."""
    candidate = Candidate(
        candidate_id="candidate",
        task_id="task",
        task_name="task",
        parent=network(),
        structure=Structure(widths={layer: after}),
        groups=(layer,),
        widths_before=(before,),
        widths_after=(after,),
    )
    return ScreenWork(target=TARGET, candidate=candidate)


def restarted(
    worker: TuningWorker, *, searches_meanwhile: bool = False, **changes: object
) -> Tuner:
    """A tuner that knows nothing but the table, as after a restart, on the worker's device.

    ``changes`` are settings of ``tune``.
    """
    old, means = worker._tuner, worker._tuner._searching
    return Tuner(
        old._bundles,
        old.space,
        worker._searchers,
        worker._trials,
        worker._device.gauge,
        old._table,
        means.config.model_copy(update=changes),
        means.seed,
        worker._working,
        searches_meanwhile=searches_meanwhile,
    )
