"""Fourteen networks of torchvision, whole: pruned, transplanted, compiled, run and compared.

    python benchmarks/networks.py [--only NETWORK ...] [--size 224] [--trials 16] [--quick]

The test of all networks (tests/networks, whose rows docs/networks.md explains), which is small for
a test, with images as large as people use and more trials for each task of the chosen groups.
The last line is JSON: the networks that passed and failed, with seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).parent.parent / "tests" / "networks" / "test_networks.py"


class Outcomes:
    """Collects what became of each network."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {"passed": {}, "failed": {}}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each part of a test."""
        if report.when == "call" or report.failed:
            name = report.nodeid.rpartition("[")[2].rstrip("]")
            self.seconds[report.outcome][name] = round(report.duration, 1)


def main() -> None:
    """Run the test in its whole form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NETWORK", help="only this one")
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--trials", type=int, default=16, help="for each task that is cut")
    parser.add_argument("--quick", action="store_true", help="as in the test: 64 and 2 trials")
    arguments = parser.parse_args()
    size, trials = (64, 2) if arguments.quick else (arguments.size, arguments.trials)
    os.environ["CPRUNE_NETWORKS_SIZE"] = str(size)
    os.environ["CPRUNE_NETWORKS_TRIALS"] = str(trials)
    tests = [f"{TEST}::test_a_network_is_pruned_and_computes_the_same"]
    if arguments.only:
        tests = [f"{tests[0]}[{name}]" for name in arguments.only]
    found = Outcomes()
    code = pytest.main(["-s", "-p", "no:cacheprovider", *tests], plugins=[found])
    print(json.dumps({"quick": arguments.quick, "size": size, "trials": trials, **found.seconds}))
    sys.exit(code)


if __name__ == "__main__":
    main()
