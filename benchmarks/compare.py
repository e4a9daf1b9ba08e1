"""``cprune compare`` on the benchmark's networks, with its figures as JSON.

    python benchmarks/compare.py --network NETWORK [--quick] [--ablations] [--output FOLDER]

Runs ``examples/compare.yaml`` with the network's settings: the dense network, ours and all
baselines, or with ``--ablations`` ours with parts left out. Given again, it goes on where it was.
The last line is JSON: ``best_baseline_ratio`` is the other's latency / ours, and
``measured_programs_ratio`` and ``search_time_ratio`` are ours / the original's, for each cut.
``..._bound`` and ``cost_ratio_caps`` say where limits ended methods, as ``schemas/comparison.py``
has them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from orchestrator import cli
from orchestrator.compare.methods import ABLATIONS, BASELINES
from schemas.comparison import MethodTable

CONFIG = Path(__file__).parent.parent / "examples" / "compare.yaml"
NETWORKS = {
    "resnet18_cifar": {"width": 16},
    "vgg16_cifar": {"fraction": 0.375},
    "mobilenet_v2_cifar": {"fraction": 0.25},
}
METHODS = (*BASELINES, *ABLATIONS)
FIELDS = {
    "network",
    "quick",
    "speedup_over_dense",
    "speedup_bound",
    "best_baseline",
    "best_of",
    "best_baseline_ratio",
    "best_baseline_bound",
    "measured_programs_ratio",
    "search_time_ratio",
    "cost_ratio_caps",
    "not_run",
    "rows",
}


def main() -> None:
    """Compare, print the tables and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet18_cifar")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, rounds and trials")
    parser.add_argument("--ablations", action="store_true", help=", ".join(ABLATIONS))
    parser.add_argument("--method", action="append", choices=METHODS, help="only this one")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    run = f"compare-{arguments.network}"
    given = ["compare", str(CONFIG), "--set", f"run={run}", "--set", f"output={arguments.output}"]
    given += ["--set", f"model.name={arguments.network}"]
    given += ["--set", f"model.arguments={json.dumps(NETWORKS[arguments.network])}"]
    given += [flag for flag in ("--quick", "--ablations") if getattr(arguments, flag[2:])]
    for method in arguments.method or ():
        given += ["--method", method]
    try:
        cli.main(given)
    except SystemExit as end:
        if end.code:
            raise
    run += "-ablations" * arguments.ablations + "-quick" * arguments.quick
    content = json.loads((arguments.output / run / "comparison.json").read_text())
    table = MethodTable.model_validate(content[0])
    print(table.model_dump_json(include=FIELDS))


if __name__ == "__main__":
    main()
