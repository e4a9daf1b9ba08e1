"""What a transplant is worth: one layer pruned to many widths, against a fresh search for each.

    python benchmarks/transplant.py [--quick] [--seeds N] [--filters N]

For each seed, a convolution (3x3, 64 -> 96 channels, 32x32, bias and relu) is tuned. Its fastest
program is transplanted to narrower layers, each of which is also searched afresh. All programs are
measured on this machine through its RPC device, and each transplant's output is compared with the
untuned program's. The three that are compared (the transplant's first variant, its best one, the
fastest of the fresh search) are measured again at the end, in turns.
Ratios are transplant / fresh search; below 1 the transplant is better. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from device_agents.host_facts import cpu_model
from orchestrator.store.memory import MemoryLedger
from schemas.config import MeasureConfig, TargetConfig, TuneConfig
from schemas.table import Program
from schemas.work import TuneWork
from workers.compiling.builder import Builder
from workers.compiling.network import relax_network
from workers.compiling.programs import ScheduleSpace, program_id, trace_text
from workers.compiling.tasks import build_table
from workers.measuring.setup import Device, open_device
from workers.pruning.fold import exported_program
from workers.tuning.bundle import Bundle
from workers.tuning.search import target_of
from workers.tuning.stored import fastest, task_latency
from workers.tuning.trials import Trial, Trials
from workers.tuning.tuner import Tuner

_TARGET = "bench"
_INPUT_CHANNELS = 64
_SIZE = 32
_TURNS = 7


@dataclass(frozen=True)
class Row:
    """One width of the layer, for one seed."""

    seed: int
    filters: int
    preserves: bool
    tiles: tuple[int, ...]
    ideal_ms: float
    first_ms: float | None
    best_ms: float | None
    fresh_ms: float | None
    first_s: float
    best_s: float
    fresh_s: float


class Layer(nn.Module):
    """A convolution with bias and relu."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(_INPUT_CHANNELS, filters, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 64, 32, 32) -> (1, filters, 32, 32)."""
        return torch.relu(self.conv(image))


class Bench:
    """The tuning machinery for one seed, with records of its own."""

    def __init__(self, device: Device, scratch: Path, seed: int, variants: int) -> None:
        self.config = TuneConfig(transplant_variants=variants, final_trials_per_task=1)
        self._device = device
        target = target_of(device.tvm_target)
        self._target = target
        self._space = ScheduleSpace(target)
        self._table = MemoryLedger()
        self._builder = Builder(
            device.tvm_target, device.build_processes, device.cores, scratch.parent / "locks"
        )
        scratch.mkdir(parents=True, exist_ok=True)
        self._trials = Trials(
            self._builder, device.gauge, self._space, self._table, self.config, scratch
        )
        self._tuner = Tuner(
            None,  # type: ignore[arg-type]  # every network is handed over imported
            self._space,
            self._trials,
            device.gauge,
            self._table,
            self.config,
            seed,
            self._working,
        )

    def layer(self, filters: int) -> Bundle:
        """The imported layer."""
        torch.manual_seed(0)
        image = torch.zeros(1, _INPUT_CHANNELS, _SIZE, _SIZE)
        relax = relax_network(exported_program(Layer(filters).eval(), image), self._target)
        table = build_table(relax, self._target)
        return Bundle(relax, table.network, table.workloads)

    def search(self, bundle: Bundle, trials: int) -> tuple[Program | None, float]:
        """A search of so many trials: its fastest program and what it took, in seconds."""
        began = time.monotonic()
        work = TuneWork(
            target=_TARGET,
            network=None,
            trials_per_task=trials,
            added_trials=True,
            modules=("conv",),
        )
        self._tuner.tune_bundle(work, bundle)
        programs = self._table.programs([_conv(bundle)], self._device.gauge.device_model)
        searched = [program for program in programs if program.source == "search"]
        return fastest(searched), time.monotonic() - began

    def transplant(
        self, parent: Program, bundle: Bundle, limit: int
    ) -> tuple[list[Program], float]:
        """The parent's program on another width: what ran, likeliest first, and seconds taken."""
        began = time.monotonic()
        workload = bundle.workloads[_conv(bundle)]
        with self._working():
            schedules = self._space.transplant(workload.module, workload.axes, parent.trace, limit)
        trials = [
            Trial(
                program_id(workload.task.task_id, trace_text(schedule)),
                trace_text(schedule),
                schedule,
                "transplant",
                parent.program_id,
            )
            for schedule in schedules
        ]
        libraries = self._trials.build(trials).result()
        programs = self._trials.measure(workload, trials, libraries, "bench")
        seconds = time.monotonic() - began
        ran = [program for program in programs if program.measurement]
        wrong = [
            program.error
            for program in self._trials.check([(workload, program) for program in ran])
            if program.measurement is None
        ]
        self._device.gauge.release()
        if wrong:
            raise SystemExit(f"a transplant to another width computes something else: {wrong}")
        return ran, seconds

    def in_turns(self, bundle: Bundle, programs: list[Program | None]) -> list[float | None]:
        """Latency of each in ms: the median over rounds that measure one after the other."""
        there = {program.program_id: program for program in programs if program is not None}
        module = bundle.workloads[_conv(bundle)].module
        trials = [
            Trial(name, program.trace, self._space.replay(module, program.trace), program.source)
            for name, program in there.items()
        ]
        libraries = self._trials.build(trials).result()
        runs: dict[str, list[float]] = {name: [] for name in there}
        with self._device.gauge.alone():
            for _ in range(_TURNS):
                for name, library in zip(there, libraries, strict=True):
                    runs[name].append(self._device.gauge.measure(name, library).latency_ms)
        self._device.gauge.release()
        return [statistics.median(runs[p.program_id]) if p else None for p in programs]

    def close(self) -> None:
        """End the builder."""
        self._trials.close()
        self._builder.close()

    def _working(self) -> AbstractContextManager[None]:
        cores = self._device.cores
        assert cores is not None
        return cores.working(600.0)


def _conv(bundle: Bundle) -> str:
    return next(task.task_id for task in bundle.table.tasks if task.kind == "conv2d")


def measure_seed(
    device: Device, scratch: Path, seed: int, arguments: argparse.Namespace
) -> list[Row]:
    """The experiment for one seed."""
    bench = Bench(device, scratch / f"seed{seed}", seed, arguments.variants)
    try:
        dense = bench.layer(arguments.filters)
        base, base_s = bench.search(dense, arguments.base_trials)
        if base is None:
            raise SystemExit("the dense layer has no program that ran")
        entry = task_latency(base.task_id, [base])
        print(
            f"seed {seed}: {arguments.filters} filters {base.latency_ms:.3f} ms, tiles "
            f"{list(entry.channel_tiles)}, {arguments.base_trials} trials in {base_s:.0f} s",
            flush=True,
        )
        vector = entry.channel_tiles[-1]
        rows = []
        for filters in arguments.widths:
            bundle = bench.layer(filters)
            first, first_s = bench.transplant(base, bundle, 1)
            rest, rest_s = bench.transplant(base, bundle, arguments.variants)
            fresh, fresh_s = bench.search(bundle, arguments.fresh_trials)
            best = fastest(rest)
            in_turns = bench.in_turns(bundle, [first[0] if first else None, best, fresh])
            first_ms, best_ms, fresh_ms = in_turns
            row = Row(
                seed=seed,
                filters=filters,
                preserves=filters % vector == 0,
                tiles=best.channel_tiles if best else (),
                ideal_ms=base.latency_ms * filters / arguments.filters,
                first_ms=first_ms,
                best_ms=best_ms,
                fresh_ms=fresh_ms,
                first_s=first_s,
                best_s=rest_s,
                fresh_s=fresh_s,
            )
            rows.append(row)
            print(_line(row), flush=True)
        return rows
    finally:
        bench.close()


_HEADER = (
    f"{'seed':>4} {'filters':>7} {'ideal ms':>9} {'transplant ms':>13} {'tiles':>14} "
    f"{'first ms':>9} {'fresh ms':>9} {'ratio':>6} {'cost s':>7} {'fresh s':>8}"
)


def _line(row: Row) -> str:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    ratio = (
        "-" if row.best_ms is None or row.fresh_ms is None else f"{row.best_ms / row.fresh_ms:.2f}"
    )
    tiles = "x".join(str(factor) for factor in row.tiles) or "none fits"
    return (
        f"{row.seed:>4} {row.filters:>7} {row.ideal_ms:>9.3f} {figure(row.best_ms):>13} "
        f"{tiles:>14} "
        f"{figure(row.first_ms):>9} {figure(row.fresh_ms):>9} {ratio:>6} {row.best_s:>7.1f} "
        f"{row.fresh_s:>8.1f}"
    )


def summary(rows: list[Row], quick: bool) -> dict[str, object]:
    """Medians over the structure-preserving widths at which both sides ran."""
    both = [row for row in rows if row.preserves and row.best_ms and row.fresh_ms]
    ratios = [row.best_ms / row.fresh_ms for row in both if row.best_ms and row.fresh_ms]
    costs = [row.best_s / row.fresh_s for row in both]
    firsts = [row.first_s / row.fresh_s for row in both]
    return {
        "quick": quick,
        "pairs": len(both),
        "median_latency_ratio": _median(ratios),
        "max_latency_ratio": max(ratios, default=math.nan),
        "median_cost_ratio": _median(costs),
        "first_variant_cost_ratio": _median(firsts),
    }


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few widths and trials")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--filters", type=int, default=96)
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.seeds = 1 if quick else arguments.seeds
    arguments.base_trials = 32 if quick else 64
    arguments.fresh_trials = 16 if quick else 48
    arguments.widths = [80, 64, 48] if quick else [90, 84, 80, 72, 64, 48]
    return arguments


def main() -> None:
    """Run the experiment and print its table."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        target = TargetConfig(name=_TARGET, threads=arguments.threads)
        device = open_device(target, MeasureConfig(), scratch / "locks", scratch)
        try:
            print(f"{cpu_model()}, target {json.dumps(device.tvm_target)}")
            print(_HEADER)
            rows = [
                row
                for seed in range(arguments.seeds)
                for row in measure_seed(device, scratch, seed, arguments)
            ]
        finally:
            device.close()
    print(json.dumps(summary(rows, arguments.quick)))


if __name__ == "__main__":
    main()
