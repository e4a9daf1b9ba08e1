"""How often the latency gate changes its mind: the same comparison repeated on this machine.

    python benchmarks/verdicts.py [--quick] [--times N]

A small residual network is compared N times (20) with itself, with one that lacks a few channels of
a single group, and with one that lacks half of it, each as a run compares a candidate with its
parent: as many pairs as the noise asks for, then the gate with its defaults. The verdict of most
repetitions is taken for the true one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from code_parts.ours import Compiled, compiled

from device_agents.host_facts import allowed_cores, cpu_model
from orchestrator.policies.gates import latency_gate
from schemas.config import MeasureConfig, PruneConfig, TuneConfig
from workers.measuring.gauge import Gauge
from workers.measuring.occasions import compare_until_sure
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to
from workers.training.small_resnet import small_resnet

_SIZE = 32
_GROUP = "layer2.0.conv1"
_KEPT = {"a few channels less": 28, "half of a group": 16}


def main() -> None:
    """Compile the networks, repeat the comparisons, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="5 times, fewer trials")
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    times = 5 if arguments.quick else arguments.times
    trials = 4 if arguments.quick else 16
    torch.manual_seed(0)
    dense = small_resnet(num_classes=10, in_channels=1).eval().requires_grad_(False)
    image = torch.randn(1, 1, _SIZE, _SIZE)
    groups = channel_groups(dense, image)
    networks = {"itself": dense} | {
        name: prune_to(dense, image, groups, {_GROUP: kept}).eval().requires_grad_(False)
        for name, kept in _KEPT.items()
    }
    tune = TuneConfig(trials_per_task=trials, min_trials_per_task=trials)
    threads = len(allowed_cores())
    print(f"{cpu_model()}, {threads} threads, {times} repetitions")
    print(f"{'compared with':<22}{'ratio':>8}{'scatter':>9}{'pairs':>7}{'passed':>8}{'differ':>8}")
    differing: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="cprune-verdicts-") as folder:
        root = Path(folder)

        def library_of(name: str) -> AbstractContextManager[Compiled]:
            place = root / name.replace(" ", "-")
            place.mkdir(exist_ok=True)
            return compiled(
                networks[name],
                image,
                tune,
                threads=threads,
                records=root / "records.sqlite",
                folder=place,
                measure=MeasureConfig(),
            )

        libraries = {}
        for name in networks:
            libraries[name] = root / f"{len(libraries)}.so"
            with library_of(name) as found:
                libraries[name].write_bytes(found.path.read_bytes())
        itself, shape = libraries["itself"], tuple(image.shape)
        with library_of("itself") as found:  # for its device: compiled anew it may be another one
            for name, library in libraries.items():
                differing[name] = _repeat(found.gauge, name, (itself, library), shape, times)
    print(json.dumps({"repetitions": times, "verdicts_that_differ": differing}))


def _repeat(
    gauge: Gauge, name: str, libraries: tuple[Path, Path], shape: tuple[int, ...], times: int
) -> int:
    """Compare so often; the verdicts that are not those of most."""
    prune = PruneConfig(max_accuracy_drop=1.0)
    passed, ratios, pairs = [], [], []
    for repetition in range(times):
        found = compare_until_sure(gauge, f"{name}/{repetition}", *libraries, shape)
        verdict = latency_gate(found, prune.step_latency_ratio, prune.confidence)
        passed.append(verdict.passed)
        ratios.append(verdict.ratio)
        pairs.append(len(found.candidate_ms))
    differ = min(sum(passed), times - sum(passed))
    print(
        f"{name:<22}{statistics.median(ratios):>8.3f}{statistics.stdev(ratios):>9.3f}"
        f"{statistics.median(pairs):>7.0f}{sum(passed):>8}{differ:>8}",
        flush=True,
    )
    return differ


if __name__ == "__main__":
    main()
