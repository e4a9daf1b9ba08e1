"""Our tuning against TVM's own driver: programs a minute, builds lost, final latencies.

    python benchmarks/tuning.py [--quick] [--seeds N] [--threads N] [--stock-limit-s S]
        [--stock-build-limit-s S]

Three convolutions of ResNet-18 for 32x32 images (3x3, with bias and relu: 64 -> 64 channels at
32x32, 128 -> 128 at 16x16, 256 -> 256 at 8x8) are tuned with 32 trials each by

- ours: one search for each seed, with the defaults of ``tune`` and ``measure``; medians count;
- stock, defaults: ``meta_schedule.relax_integration.tune_relax`` as TVM ships it;
- stock, our search: the same driver with our population, generations, round size and repeats.

All get the same Relax module and tune its convolutions alone, at the same number of threads, on
this machine through its RPC device. Each search is a process of its own, and its time counts from
the start of that process. Ours starts its tracker and device within that time, and ends when the
outputs of its fastest programs have been checked; stock finds tracker and device started.

A usable program was built, ran and has a latency. A stock search that takes longer than
``--stock-limit-s`` is stopped there; what it had measured by then counts, and its line says so.
Stopped before the first batch of every layer is through, it has no records and no final latency.
TVM's builder has 30 s for a build, in which each of its processes imports what takes half a minute
on a slow machine: there it loses every build. ``--stock-build-limit-s`` gives it more.
At the end the fastest program of every search is built again, and all are measured in turns on one
device. Ratios are ours / stock: above 1 is better for programs a minute, below 1 for seconds and
latencies. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 8 trials")
    parser.add_argument("--seeds", type=int, default=3, help="searches of ours")
    parser.add_argument("--trials", type=int, default=32, help="for each convolution")
    parser.add_argument("--threads", type=int, default=0, help="of the device; 0: all cores")
    parser.add_argument("--stock-limit-s", type=float, default=1800.0, help="for each stock search")
    parser.add_argument("--stock-build-limit-s", type=float, default=30.0, help="TVM's: 30")
    alone = parser.add_argument_group("one search alone, as the comparison starts it")
    alone.add_argument("--ours", type=int, metavar="SEED")
    alone.add_argument("--stock", choices=("defaults", "ours"), help="whose search parameters")
    alone.add_argument("--folder", type=Path, help="for its log and its programs")
    alone.add_argument("--target", type=json.loads, help="stock: the TVM target as JSON")
    alone.add_argument("--tracker-port", type=int, help="stock: where its device is to be had")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.trials = 1, 8
    return arguments


def main() -> None:
    """Run the comparison, or one search of it; each imports only what it needs itself."""
    arguments = parse()
    if arguments.stock:
        from tuning_parts.stock import tune_stock

        tune_stock(
            arguments.folder,
            arguments.stock,
            arguments.trials,
            arguments.target,
            arguments.tracker_port,
            arguments.stock_build_limit_s,
        )
    elif arguments.ours is not None:
        from tuning_parts.ours import tune_ours

        tune_ours(arguments.folder, arguments.ours, arguments.trials, arguments.threads)
    else:
        from tuning_parts.contest import run_contest

        run_contest(arguments)


if __name__ == "__main__":
    main()
