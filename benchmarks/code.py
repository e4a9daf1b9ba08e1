"""Our compiled networks against what people would deploy instead, on this machine's CPU.

    python benchmarks/code.py [--quick] [--pruned] [--only NETWORK] [--run FOLDER] [--trials N]
                              [--max-s S] [--records FILE]

Dense networks with random weights, one image at a time, fp32, the same number of threads for all:
ours (tuned, compiled, run on the local RPC device) against ONNX Runtime and PyTorch (eager and
``torch.compile``). All are measured in turns; a pause between lets the other's threads fall
asleep. Latencies are medians over the turns, ratios medians of the turns' ratios.

Programs come from the record store first; what is missing of the trials is searched, for at most
``--max-s`` seconds a network. For every network the table of tasks is printed too: what each takes
by itself and inside the network, and how their sum compares with the whole.
``--pruned``: networks with half of every width (random weights, no accuracy is claimed), ours
against ONNX Runtime on the same network and on the dense one.
``--run``: the same of a finished run's networks, the pruned one with the accuracy that it has.
Ratios are ours / theirs: below 1 ours is faster. GFLOP/s counts the direct form's operations,
whoever needs fewer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from code_parts.networks import NETWORKS, halved, network_and_image, of_run
from code_parts.ours import Compiled, compiled
from code_parts.peers import (
    Run,
    median_ms,
    onnx_runtime,
    peak_gflops,
    torch_compiled,
    torch_eager,
)
from torch import Tensor, nn

from device_agents.host_facts import allowed_cores, cpu_model
from orchestrator.store.records import store_path
from schemas.config import TuneConfig

_TURNS = 7
_PAUSE_S = 0.2
_OURS, _ORT, _DENSE_ORT = "ours", "ONNX Runtime", "ONNX Runtime, dense"
_FIELDS = {
    (_ORT, False): "dense_vs_ort",
    (_ORT, True): "pruned_vs_pruned_ort",
    (_DENSE_ORT, True): "pruned_vs_dense_ort",
}
"""Contender, and whether the networks are pruned -> name of our ratio to it in the JSON line."""


def main() -> None:
    """Compare each network, print the tables and the JSON line."""
    arguments = _parse()
    threads = arguments.threads or len(allowed_cores())
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    label = "quick, " if arguments.quick else ""
    print(f"{cpu_model()}, {threads} threads, {label}{arguments.trials} trials for each task")
    print(f"measured peak: {peak_gflops(threads):.0f} GFLOP/s (the fastest matrix product)")
    ratios: dict[str, dict[str, float | bool]] = {}
    rows = []
    for case in _cases(arguments):
        name = case.name
        latencies, gmacs = _compare(case, threads, arguments)
        for contender, values in latencies.items():
            per_turn = zip(latencies[_OURS], values, strict=True)
            ratio = statistics.median(ours / other for ours, other in per_turn)
            middle = statistics.median(values)
            rows.append((name, contender, middle, 2 * gmacs / middle * 1e3, ratio))
            field = _FIELDS.get((contender, case.dense is not None))
            if field:
                ratios.setdefault(name, {})[field] = round(ratio, 3)
        if case.dense is not None:
            ratios[name]["pruned_at_floor"] = case.meets_floor
    print(f"\n{'network':<18}{'by':<22}{'ms':>9}{'GFLOP/s':>10}{'ours / it':>11}")
    for name, contender, middle, gflops, ratio in rows:
        shown = "" if contender == _OURS else f"{ratio:.2f}"
        print(f"{name:<18}{contender:<22}{middle:>9.2f}{gflops:>10.0f}{shown:>11}")
    print(json.dumps(ratios))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 trials for each task")
    parser.add_argument("--pruned", action="store_true", help="half of every width")
    parser.add_argument("--only", action="append", choices=sorted(NETWORKS), metavar="NETWORK")
    parser.add_argument("--run", action="append", type=Path, help="a finished run's networks")
    parser.add_argument("--trials", type=int, default=64, help="for each task, shared out")
    parser.add_argument("--max-s", type=float, default=2700.0, help="of search, for each network")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--records", type=Path, default=store_path(), help="measured programs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials = 8
    return arguments


@dataclass(frozen=True)
class _Case:
    """A network, and the dense one it was pruned from, if it was."""

    name: str
    network: nn.Module
    image: Tensor
    dense: nn.Module | None = None
    meets_floor: bool = False


def _cases(arguments: argparse.Namespace) -> Iterator[_Case]:
    for folder in arguments.run or ():
        dense, pruned, image, meets = of_run(folder)
        yield _Case(str(folder), pruned, image, dense, meets)
    for name in arguments.only or (() if arguments.run else NETWORKS):
        network, image = network_and_image(name)
        if arguments.pruned:
            yield _Case(name, halved(network, image), image, network)
        else:
            yield _Case(name, network, image)


def _compare(
    case: _Case, threads: int, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], float]:
    """Latency of each contender in each turn, in ms, and the network's MACs in 1e9."""
    print(f"\n{case.name}", flush=True)
    network, image = case.network, case.image
    tune = TuneConfig(
        trials_per_task=arguments.trials,
        min_trials_per_task=min(16, arguments.trials),
        max_s=arguments.max_s,
    )
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cprune-code-") as folder,
        compiled(
            network,
            image,
            tune,
            threads=threads,
            records=arguments.records,
            folder=Path(folder),
        ) as ours,
    ):
        took_s = time.monotonic() - began
        print(f"  {ours.tuned.measured_programs} programs measured, {took_s:.0f} s in all")
        _print_tasks(ours)
        peers: dict[str, Run] = {
            _ORT: onnx_runtime(network, image, threads, Path(folder)),
            "torch eager": torch_eager(network, image),
            "torch compiled": torch_compiled(network, image),
        }
        if case.dense is not None:
            peers[_DENSE_ORT] = onnx_runtime(case.dense, image, threads, Path(folder))
        latencies: dict[str, list[float]] = {contender: [] for contender in [_OURS, *peers]}
        for _ in range(_TURNS):
            time.sleep(_PAUSE_S)
            latencies[_OURS].append(ours.median_ms())
            for contender, run in peers.items():
                time.sleep(_PAUSE_S)
                latencies[contender].append(median_ms(run))
        return latencies, ours.gmacs


def _print_tasks(ours: Compiled) -> None:
    tuned = ours.tuned
    names = {task.task_id: task.name for task in tuned.table.tasks}
    alone = inside = 0.0
    print(f"  {'calls':>5} {'task':<46}{'alone ms':>9}{'inside ms':>10}{'trials':>7}")
    costs = {e.task_id: e.cost_ms * tuned.table.weight(e.task_id) for e in tuned.latencies}
    for entry in sorted(tuned.latencies, key=lambda entry: -costs[entry.task_id]):
        calls = tuned.table.weight(entry.task_id)
        within = 0.0 if entry.in_model_ms is None else entry.in_model_ms
        alone, inside = alone + calls * entry.latency_ms, inside + calls * within
        print(
            f"  {calls:>4}x {names[entry.task_id][:45]:<46}{entry.latency_ms:>9.4f}{within:>10.4f}"
            f"{entry.trials:>7}"
        )
    whole = tuned.model_ms or float("nan")
    print(
        f"  sum of calls: alone {alone:.3f} ms ({alone / whole - 1:+.1%}), inside {inside:.3f} ms "
        f"({inside / whole - 1:+.1%}); the whole network, unwatched: {whole:.3f} ms"
    )


if __name__ == "__main__":
    main()
