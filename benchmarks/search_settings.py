"""What search settings are worth: a narrow ResNet-18 tuned anew with each of them.

    python benchmarks/search_settings.py [--trials N] [--seeds N]
                                         [--setting POPULATION:ROUND[:ROUNDS_AT_ONCE] ...]

ResNet-18 for 32x32 images, width 16 with half of its channels, untrained: some 20 tasks that take
microseconds each, as the networks that pruning ends with. For each seed every setting searches once
(so that the device's pace is shared out), from nothing, with the same number of trials. At the
end the fastest program of each task of each search is built again, and all are measured in turns.
Printed are, for each setting, the medians over the seeds of the network's programs together, and
of the seconds that the search took. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tvm.ir import save_json
from workbench import TARGET, Workbench, workbench

from device_agents.host_facts import cpu_model
from orchestrator.store.memory import MemoryLedger
from schemas.config import MeasureConfig, ModelConfig, TuneConfig
from schemas.work import TuneWork
from workers.compiling.builder import BuildJob, Library
from workers.measuring.gauge import ProgramFailed
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to, uniform_widths
from workers.training.networks import build_model, example_input
from workers.tuning.bundle import Bundle

_SETTINGS = ("32:16", "64:16", "128:16", "64:8", "64:4")
_SIZE = 32
_TURNS = 5
_BUILD_TIMEOUT_S = 60.0
_SESSION_S = 1800  # one session for all turns


@dataclass
class Found:
    """One search's fastest programs (task -> trace) and what it took."""

    setting: str
    seed: int
    traces: dict[str, str]
    measured: int
    wall_s: float
    latencies_ms: dict[str, float] = field(default_factory=dict)
    """Task -> median of the turns at the end."""


def main() -> None:
    """Search with every setting, measure what was found, print the table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16, help="for each task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--setting", action="append", metavar="POPULATION:ROUND[:ROUNDS_AT_ONCE]")
    arguments = parser.parse_args()
    settings = tuple(arguments.setting or _SETTINGS)
    print(f"{cpu_model()}, {arguments.trials} trials for each task", flush=True)
    searches = []
    for seed in range(arguments.seeds):
        for setting in settings:
            searches.append(_search(setting, seed, arguments.trials))
            last = searches[-1]
            print(
                f"{setting} seed {seed}: {last.measured} programs, {last.wall_s:.0f} s", flush=True
            )
    weights = _measure(searches)
    rows = [_row(setting, searches, weights) for setting in settings]
    print("population:round    programs together us    search s")
    for row in rows:
        print(f"{row['setting']:>16}    {row['sum_us']:>20.1f}    {row['wall_s']:>8.0f}")
    print(json.dumps({"trials": arguments.trials, "seeds": arguments.seeds, "rows": rows}))


def _bundle(bench: Workbench) -> Bundle:
    model = build_model(
        ModelConfig(name="resnet18_cifar", arguments={"width": 16}), 10, 3, image_size=_SIZE, seed=0
    )
    image = example_input(1, 3, _SIZE)
    groups = channel_groups(model, image)
    return bench.bundle(prune_to(model, image, groups, uniform_widths(groups, 0.5)), image)


def _search(setting: str, seed: int, trials: int) -> Found:
    """One search from nothing."""
    population, size, *at_once = map(int, setting.split(":"))
    tune = TuneConfig(
        population_size=population,
        round_size=size,
        rounds_at_once=at_once[0] if at_once else 1,
        min_trials_per_task=max(1, trials // 2),
    )
    ledger = MemoryLedger()
    with (
        tempfile.TemporaryDirectory(prefix="cprune-bench-") as folder,
        workbench(ledger, Path(folder), tune, MeasureConfig(), seed=seed) as bench,
    ):
        bundle = _bundle(bench)
        work = TuneWork(target=TARGET, network=None, trials_per_task=trials)
        tuned = bench.tuner.tune_bundle(work, bundle)
        stored = bench.tuner.stored(bundle)
        traces = {
            entry.task_id: program.trace
            for entry in tuned.latencies
            for program in stored[entry.task_id]
            if program.program_id == entry.program_id
        }
    return Found(setting, seed, traces, tuned.measured_programs, tuned.wall_s)


def _measure(searches: list[Found]) -> dict[str, int]:
    """Measure all searches' programs in turns, task by task; returns the tasks' call sites."""
    measure = MeasureConfig(session_timeout_s=_SESSION_S)
    with (
        tempfile.TemporaryDirectory(prefix="cprune-bench-") as folder,
        workbench(MemoryLedger(), Path(folder), TuneConfig(), measure) as bench,
    ):
        bundle = _bundle(bench)
        for task_id in bundle.task_ids:
            module = bundle.workloads[task_id].module
            jobs = [
                BuildJob(
                    str(save_json(bench.space.replay(module, found.traces[task_id]).mod)),
                    Path(folder) / f"{number}.so",
                )
                for number, found in enumerate(searches)
            ]
            libraries = bench.builder.build(jobs, _BUILD_TIMEOUT_S)
            for found, latency_ms in zip(searches, _in_turns(bench, libraries), strict=True):
                found.latencies_ms[task_id] = latency_ms
        return {task_id: bundle.table.weight(task_id) for task_id in bundle.task_ids}


def _in_turns(bench: Workbench, libraries: list[Library]) -> list[float]:
    """Milliseconds of each library, the median of its turns."""
    times: list[list[float]] = [[] for _ in libraries]
    with bench.device.gauge.alone():
        for turn in range(_TURNS):
            for number, library in enumerate(libraries):
                try:
                    measured = bench.device.gauge.measure(f"{turn}/{number}", library)
                except ProgramFailed as failure:
                    raise SystemExit(
                        f"a program that had run does not run again: {failure}"
                    ) from failure
                times[number].append(measured.latency_ms)
    return [statistics.median(values) for values in times]


def _row(setting: str, searches: list[Found], weights: dict[str, int]) -> dict[str, object]:
    mine = [found for found in searches if found.setting == setting]
    sums = [
        1000 * sum(weights[task_id] * ms for task_id, ms in found.latencies_ms.items())
        for found in mine
    ]
    return {
        "setting": setting,
        "sum_us": statistics.median(sums),
        "sums_us": [round(value, 1) for value in sums],
        "wall_s": statistics.median(found.wall_s for found in mine),
    }


if __name__ == "__main__":
    main()
