"""What short plain loops are worth: programs built with and without, in turns.

    python benchmarks/builds.py [--programs N]

For each of the three convolutions of benchmarks/tuning.py, N programs are drawn as the first round
of a search draws them, at random. Each is built twice, as ``workers.compiling.build`` builds it
(``with_short_plain_loops``) and as TVM would by itself, and both libraries are timed in turns on
this machine, on all cores. Printed are the seconds of CPU time that lowering and code generation
took, without linking, and the latencies' ratio, new / old. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tuning_parts.network import three_layers
from tvm.driver import build as build_module
from tvm.ir import IRModule
from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

from device_agents.default_target import host_target
from device_agents.host_facts import cpu_model
from workers.compiling.plain_loops import with_short_plain_loops
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import build_table
from workers.tuning.cost_model import RecordModel
from workers.tuning.search import Search, target_of

_TURNS = 5
_POPULATION = 64
_SLOW_S = 1.0


def main() -> None:
    """Draw, build and time the programs; print the table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=16, help="for each convolution")
    arguments = parser.parse_args()
    target = target_of(host_target(None))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, module in enumerate(drawn(target, arguments.programs)):
            function = module["main"]
            old = _built(function, target, Path(folder) / f"{number}-old.so")
            new = _built(
                with_short_plain_loops(function), target, Path(folder) / f"{number}-new.so"
            )
            ratio = _ratio([tvm.runtime.load_module(str(path)) for _, path in (old, new)], function)
            rows.append((old[0], new[0], ratio))
            print(f"{number:3d}: {old[0]:6.2f} s, {new[0]:6.2f} s; latency {ratio:.2f}", flush=True)
    old_s, new_s, ratios = zip(*rows, strict=True)
    found = {
        "programs": len(rows),
        "old_s": statistics.fmean(old_s),
        "new_s": statistics.fmean(new_s),
        "old_most_s": max(old_s),
        "new_most_s": max(new_s),
        "old_slow": sum(seconds > _SLOW_S for seconds in old_s),
        "new_slow": sum(seconds > _SLOW_S for seconds in new_s),
        "latency_ratio": statistics.geometric_mean(ratios),
    }
    print(
        f"{cpu_model()}: a build takes {found['old_s']:.2f} s and {found['new_s']:.2f} s, at most "
        f"{found['old_most_s']:.1f} and {found['new_most_s']:.1f}; more than {_SLOW_S:g} s: "
        f"{found['old_slow']} and {found['new_slow']} of {len(rows)}; latency of the new ones "
        f"{found['latency_ratio']:.3f} of the old"
    )
    print(json.dumps(found))


def drawn(target: tvm.target.Target, count: int) -> Iterator[IRModule]:
    """Programs of the three convolutions as they run inside a network: weights packed before."""
    relax = three_layers(target)
    search = Search(ScheduleSpace(target), _POPULATION, generations=1)
    untrained = RecordModel().fitted({}, seed=0)
    for workload in build_table(relax, target).workloads.values():
        if workload.axes.reductions:
            for found in search.propose(workload, [], count, 0, untrained):
                yield RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(found.schedule.mod)


def _built(function: Any, target: tvm.target.Target, path: Path) -> tuple[float, Path]:
    """Seconds of CPU time, and the library."""
    began = time.process_time()
    built = build_module(IRModule({"main": function}), target=target)
    built.write_to_file(str(path.with_suffix(".o")))
    seconds = time.process_time() - began
    built.export_library(str(path))
    return seconds, path


def _ratio(libraries: list[Any], function: Any) -> float:
    random = np.random.default_rng(0)
    shapes = [[int(extent) for extent in parameter.shape] for parameter in function.params]
    inputs = [tvm.runtime.tensor(random.random(shape, dtype="float32")) for shape in shapes]
    timers = [
        library.time_evaluator("main", tvm.cpu(), number=1, repeat=3, min_repeat_ms=15)
        for library in libraries
    ]
    turns = [[min(timer(*inputs).results) for timer in timers] for _ in range(_TURNS)]
    return statistics.median(new / old for old, new in turns)


if __name__ == "__main__":
    main()
