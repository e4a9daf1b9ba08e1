"""TVM's own search: ``tune_relax`` with its builder, its RPC runner and its database.

Nothing of it is replaced: builder and runner only note as well what became of each program. A
measure callback would hear of it late, since ``tune_relax`` collects the first results of all tasks
when the last of these tasks has been built. For the same reason a search that is stopped before
that has measured programs, and an empty database.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import psutil
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.builder import LocalBuilder
from tvm.s_tir.meta_schedule.relax_integration import tune_relax
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RPCConfig, RPCRunner
from tvm.s_tir.meta_schedule.utils import cpu_count
from tvm.target import Target

from schemas.config import MeasureConfig, TuneConfig
from schemas.target import TargetConfig
from tuning_parts import LAYERS
from tuning_parts.log import SearchLog
from tuning_parts.network import three_layers

DATABASE = "database"
_CONVOLUTIONS = "conv2d"


def tune_stock(
    folder: Path,
    search: Literal["defaults", "ours"],
    trials_per_task: int,
    target_description: dict[str, Any],
    tracker_port: int,
    build_limit_s: float,
) -> None:
    """Tune the three convolutions; the records go to the database in ``folder``."""
    log = SearchLog(folder)
    target = Target(target_description)
    network = three_layers(target)
    evaluator, settings = _search_of_ours() if search == "ours" else (None, {})
    address = RPCConfig("127.0.0.1", tracker_port, TargetConfig().key)
    try:
        tune_relax(
            network.module,
            {},
            target,
            work_dir=str(folder / DATABASE),
            max_trials_global=len(LAYERS) * trials_per_task,
            max_trials_per_task=trials_per_task,
            op_names=[_CONVOLUTIONS],
            builder=_NotedBuilder(log, build_limit_s),
            runner=_NotedRunner(log, address, evaluator),
            seed=0,
            **settings,
        )
        log.note("end")
    finally:
        for child in psutil.Process().children(recursive=True):
            child.kill()
    os._exit(0)  # the pools' threads may wait for their killed processes


def _search_of_ours() -> tuple[EvaluatorConfig, dict[str, Any]]:
    """Our parameters in stock's terms: how to measure, and how to search."""
    tune, measure = TuneConfig(), MeasureConfig()
    evaluator = EvaluatorConfig(
        number=1, repeat=measure.program_repeats, min_repeat_ms=measure.program_min_repeat_ms
    )
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=tune.population_size,
        genetic_num_iters=tune.generations,
        init_min_unmeasured=min(16, tune.population_size // 2),
    )
    return evaluator, {"num_trials_per_iter": tune.round_size, "strategy": strategy}


@derived_object
class _NotedBuilder(LocalBuilder._cls):  # type: ignore[misc]
    """TVM's builder, which notes what was lost of a batch, and why."""

    def __init__(self, log: SearchLog, limit_s: float) -> None:
        # Its own number of workers is that of ``tune_relax``.
        super().__init__(max_workers=cpu_count(logical=False), timeout_sec=limit_s)
        self._log = log

    def build(self, build_inputs: list[Any]) -> list[Any]:
        results: list[Any] = super().build(build_inputs)
        for result in results:
            if result.error_msg:
                late = "Timeout" in result.error_msg
                self._log.note("time-out" if late else "compile error", result.error_msg)
        return results


@derived_object
class _NotedRunner(RPCRunner._cls):  # type: ignore[misc]
    """TVM's RPC runner, which notes every measurement, or its failure, as it comes in."""

    def __init__(
        self, log: SearchLog, address: RPCConfig, evaluator: EvaluatorConfig | None
    ) -> None:
        super().__init__(address, evaluator)
        self._log = log

    def run(self, runner_inputs: list[Any]) -> list[Any]:
        futures: list[Any] = super().run(runner_inputs)
        for future in futures:
            future.future.add_done_callback(self._note)
        return futures

    def _note(self, done: Future[list[float]]) -> None:
        error = done.exception()
        if error is None:
            self._log.note("measured")
        else:
            self._log.note("other", f"{type(error).__name__}: {error}")
