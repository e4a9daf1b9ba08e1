"""What a transplant is worth: layers of real networks cut to narrower widths, against a fresh
search for each.

    python benchmarks/transplant.py [--quick] [--seeds N] [--layers FROM:TO] [--trials N]
                                    [--rows FILE]

Each layer of resnet18 and mobilenet_v2 (as for 224x224 images) and vgg16_bn (32x32) is tuned in its
direct form. Its fastest program is transplanted to layers with fewer output channels, and with
fewer input channels, as the layer behind a pruned one has; each of those is searched afresh too,
all its trials, by a search that knows no program of the wider layer and no transplant. A width is
called structure-preserving where it keeps the innermost factors of the program: the vector
factor divides the output channels, or the innermost factor of the reduction divides the input
channels. The three that are compared (the transplant's first variant, its best one, the fastest of
the fresh search) are measured again at the end, in turns, and every transplant's output is compared
with the untuned program's. Ratios are transplant / fresh search; below 1 the transplant is better.
With ``--rows`` the rows are kept in a file of JSON lines, and given again it goes on with the
layers of which there is none yet, so that several machines may take some ``--layers`` each and one
put their rows together. With that, or with all layers, a picture is written to
benchmarks/transplant.svg. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from transplant_parts.layers import LAYERS, Layer
from transplant_parts.picture import write_picture
from transplant_parts.rows import Row, keep_row, kept_rows, summary
from workbench import TARGET, Workbench, workbench

from device_agents.host_facts import cpu_model
from orchestrator.store.memory import MemoryLedger
from schemas.config import MeasureConfig, TuneConfig
from schemas.table import Program
from schemas.work import TuneWork
from workers.tuning.bundle import Bundle
from workers.tuning.stored import fastest
from workers.tuning.trials import trial_of

PICTURE = Path(__file__).with_name("transplant.svg")
_TURNS = 7


class Bench:
    """Searches and transplants of one seed, on one workbench."""

    def __init__(self, bench: Workbench, trials: int, variants: int) -> None:
        self._bench = bench
        self._count = trials
        self._variants = variants

    def bundle(self, layer: Layer) -> Bundle:
        """The layer, imported as a run imports a network."""
        return self._bench.bundle(*layer.module(), by_tiles=False)

    def search(self, bundle: Bundle) -> tuple[Program, float]:
        """The fastest program of a search, and what that took in seconds.

        The search has a table of its own: it begins with nothing, and gets all its trials, however
        little the last ones gained. Raises ``SystemExit`` where it had fewer, or none ran.
        """
        began, table = time.monotonic(), MemoryLedger()
        work = TuneWork(target=TARGET, network=None, trials_per_task=self._count, modules=("0",))
        tune = TuneConfig(min_trials_per_task=self._count)
        with self._bench.with_table(table, tune) as bench:
            bench.tuner.tune_bundle(work, bundle)
        seconds = time.monotonic() - began
        programs = table.programs([_main(bundle)], self._bench.trials.measured_as)
        if len(programs) != self._count:
            raise SystemExit(f"a search had {len(programs)} trials instead of {self._count}")
        best = fastest(programs)
        if best is None:
            raise SystemExit("no program of the search ran")
        return best, seconds

    def transplant(
        self, parent: Program, bundle: Bundle, limit: int
    ) -> tuple[list[Program], float]:
        """The parent's program on another layer: what ran, likeliest first, and seconds taken."""
        began = time.monotonic()
        bench, workload = self._bench, bundle.workloads[_main(bundle)]
        schedules = bench.space.transplant(workload.module, workload.axes, parent.trace, limit)
        trials = [
            replace(trial_of(workload, "bench", schedule, "transplant"), parent=parent.program_id)
            for schedule in schedules
        ]
        libraries = bench.trials.build(trials).result()
        programs = bench.trials.measure(trials, libraries)
        seconds = time.monotonic() - began
        ran = [program for program in programs if program.measurement]
        checked = bench.trials.check([(workload, program) for program in ran])
        wrong = [program.error for program in checked if program.measurement is None]
        bench.device.gauge.release()
        if wrong:
            raise SystemExit(f"a transplant to another width computes something else: {wrong}")
        return ran, seconds

    def in_turns(self, bundle: Bundle, programs: Sequence[Program]) -> list[float]:
        """Latency of each in ms: the median over rounds that measure one after the other."""
        there = {program.program_id: program for program in programs}
        bench, workload = self._bench, bundle.workloads[_main(bundle)]
        trials = [
            trial_of(
                workload, "", bench.space.replay(workload.module, program.trace), program.source
            )
            for program in there.values()
        ]
        libraries = bench.trials.build(trials).result()
        failed = [library.error for library in libraries if library.error]
        if failed:
            raise SystemExit(f"a program that has run did not build again: {failed[0]}")
        gauge = bench.device.gauge
        runs: dict[str, list[float]] = {name: [] for name in there}
        with gauge.alone():
            for _ in range(_TURNS):
                for name, library in zip(there, libraries, strict=True):
                    runs[name].append(gauge.measure(name, library).latency_ms)
        gauge.release()
        return [statistics.median(runs[program.program_id]) for program in programs]

    def rows(self, seed: int, layer: Layer) -> Iterator[Row]:
        """The layer at its widths, each as soon as it is measured."""
        base, base_s = self.search(self.bundle(layer))
        vector = next((factor for factor in reversed(base.channel_tiles) if factor > 1), 1)
        reduction = base.reduction_tiles[-1] if base.reduction_tiles else 1
        print(
            f"{layer.title}: {base.latency_ms:.4f} ms, tiles {list(base.channel_tiles)} and "
            f"{list(base.reduction_tiles)}, {self._count} trials in {base_s:.0f} s",
            flush=True,
        )
        for side, width, preserves in widths_of(layer, vector, reduction):
            bundle = self.bundle(layer.cut(side, width))
            first, first_s = self.transplant(base, bundle, 1)
            every, best_s = self.transplant(base, bundle, self._variants)
            best = fastest(every)
            fresh, fresh_s = self.search(bundle)
            if not first or best is None:
                print(f"  {side} {width}: no transplant", flush=True)
                continue
            first_ms, best_ms, fresh_ms = self.in_turns(bundle, [first[0], best, fresh])
            row = Row(
                seed,
                layer,
                side,
                width,
                preserves,
                first_ms,
                best_ms,
                fresh_ms,
                first_s,
                best_s,
                fresh_s,
                self._count,
            )
            print(_line(row), flush=True)
            yield row


def widths_of(layer: Layer, vector: int, reduction: int) -> list[tuple[str, int, bool]]:
    """Side, channels, and whether they keep the structure.

    Of the outputs about three quarters and a half that do, and about five eighths that do not; of
    the inputs about a half that do and about five eighths that do not, unless the program's factor
    is 1, which every width keeps. Inputs are multiples of 8 where they can be, as they are behind a
    layer that was cut by its vectors.
    """
    outputs, inputs = layer.outputs, layer.inputs
    unit = vector if vector <= outputs // 2 else max(1, outputs // 8)
    keeping = {outputs * share // 8 // unit * unit for share in (6, 4)} - {0, outputs}
    breaking = outputs * 5 // 8 + (1 if vector > 1 else 0)
    found = [("output", width) for width in sorted({*keeping, breaking}, reverse=True)]
    if not layer.is_depthwise and inputs >= 16:
        unit = next(u for u in (math.lcm(8, reduction), reduction, 8) if u <= inputs // 2)
        five = inputs * 5 // 8
        found.append(("input", five // 8 * 8 if five // 8 * 8 % reduction else five + 1))
        found.append(("input", inputs // 2 // unit * unit))
    return [
        (side, width, width % (vector if side == "output" else reduction) == 0)
        for side, width in found
    ]


def _main(bundle: Bundle) -> str:
    return next(task.task_id for task in bundle.table.tasks if task.kind != "other")


_HEADER = (
    f"{'':>4} {'side':<7}{'width':>6} {'transplant ms':>14}{'first ms':>10}{'fresh ms':>10}"
    f"{'ratio':>7}{'cost s':>8}{'fresh s':>9}"
)


def _line(row: Row) -> str:
    mark = "*" if row.preserves else " "
    return (
        f"{mark:>4} {row.side:<7}{row.width:>6} {row.best_ms:>14.4f}{row.first_ms:>10.4f}"
        f"{row.fresh_ms:>10.4f}{row.ratio:>7.2f}{row.best_s:>8.1f}{row.fresh_s:>9.1f}"
    )


def _layers(text: str) -> tuple[Layer, ...]:
    first, last = (int(number) if number else None for number in text.split(":"))
    return LAYERS[first:last]


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, three layers, 16 trials")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--layers", type=_layers, default=LAYERS, help="FROM:TO, counted from 0")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--variants", type=int, default=TuneConfig().transplant_variants)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--rows", type=Path, help="keeps the rows, and goes on with them")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.layers, arguments.trials = 1, LAYERS[:3], 16
    return arguments


def main() -> None:
    """Run the experiment, print its table, draw its picture."""
    arguments = parse()
    print(f"{cpu_model()}, {arguments.trials} trials; * keeps the structure")
    print(_HEADER)
    rows = kept_rows(arguments.rows, arguments.trials)
    for row in rows:
        print(_line(row))
    for seed in range(arguments.seeds):
        with (
            tempfile.TemporaryDirectory(prefix="cprune-transplant-") as folder,
            workbench(
                MemoryLedger(),
                Path(folder),
                TuneConfig(),
                MeasureConfig(),
                threads=arguments.threads,
                seed=seed,
            ) as bench,
        ):
            own = Bench(bench, arguments.trials, arguments.variants)
            for layer in arguments.layers:
                if not any((row.seed, row.layer) == (seed, layer) for row in rows):
                    for row in own.rows(seed, layer):
                        keep_row(row, arguments.rows)
                        rows.append(row)
    if arguments.rows is not None or {row.layer for row in rows} == set(LAYERS):
        write_picture(rows, PICTURE)
    print(json.dumps(summary(rows, arguments.quick)))


if __name__ == "__main__":
    main()
