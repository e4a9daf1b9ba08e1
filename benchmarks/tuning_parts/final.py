"""The fastest programs of all searches, built again and measured in turns on one device."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from tvm.ir import save_json
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from schemas.config import MeasureConfig
from schemas.target import TargetConfig
from tuning_parts import LAYERS
from tuning_parts.log import complete_lines
from tuning_parts.network import three_layers
from tuning_parts.ours import PROGRAMS, TARGET
from tuning_parts.stock import DATABASE
from workers.compiling.builder import Builder, BuildJob, Library
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import build_table
from workers.compiling.trace import dump_trace
from workers.compiling.workload import Workload
from workers.measuring.gauge import Gauge, ProgramFailed
from workers.measuring.setup import open_device
from workers.tuning.search import target_of

_TURNS = 10
_BUILD_TIMEOUT_S = 60.0
_SESSION_S = 1800  # one session for all turns

Latencies = dict[str, dict[str, float]]
"""Milliseconds by search and layer; a search without a program of a layer has no entry there."""


def measure_finals(folders: dict[str, Path], threads: int, scratch: Path) -> Latencies:
    """Build each search's fastest programs and measure them in turns; medians over the turns."""
    scratch.mkdir()
    device = open_device(
        TargetConfig(name=TARGET, threads=threads),
        MeasureConfig(session_timeout_s=_SESSION_S),
        scratch / "locks",
        scratch,
    )
    builder = Builder(device.tvm_target, device.build_processes, device.cores, scratch / "locks")
    try:
        target = target_of(device.tvm_target)
        workloads = _workloads(target)
        space = ScheduleSpace(target)
        libraries: dict[tuple[str, str], Library] = {}
        for name, folder in folders.items():
            traces = _fastest(folder, workloads, target)
            jobs = [
                BuildJob(
                    str(save_json(space.replay(workloads[layer].module, trace).mod)),
                    scratch / f"{name}-{layer}.so",
                )
                for layer, trace in traces.items()
            ]
            built = builder.build(jobs, _BUILD_TIMEOUT_S)
            libraries |= {
                (name, layer): library for layer, library in zip(traces, built, strict=True)
            }
        return _in_turns(device.gauge, libraries)
    finally:
        builder.close()
        device.close()


def _workloads(target: Target) -> dict[str, Workload]:
    table = build_table(three_layers(target), target)
    return {
        layer: workload
        for task, workload in table.workloads.items()
        for layer in table.network.modules(task)
    }


def _fastest(folder: Path, workloads: dict[str, Workload], target: Target) -> dict[str, str]:
    """The trace of the search's fastest program, by layer."""
    ours = folder / PROGRAMS
    if ours.exists():
        found: dict[str, str] = json.loads(ours.read_text())
        return found
    paths = [folder / DATABASE / f"database_{kind}.json" for kind in ("workload", "tuning_record")]
    if not all(path.exists() for path in paths):
        return {}
    for path in paths:
        path.write_text(complete_lines(path.read_text()))
    database = ms.database.JSONDatabase(*map(str, paths))
    records = {
        layer: database.query_tuning_record(workload.module, target, layer)
        for layer, workload in workloads.items()
    }
    return {layer: dump_trace(record.trace) for layer, record in records.items() if record}


def _in_turns(gauge: Gauge, libraries: dict[tuple[str, str], Library]) -> Latencies:
    """Each turn measures every program once, layer by layer, and begins with another search."""
    times: dict[tuple[str, str], list[float]] = {
        key: [] for key, library in libraries.items() if not library.error
    }
    names = list(dict.fromkeys(name for name, _ in times))
    with gauge.alone():
        for turn in range(_TURNS):
            first = turn % max(1, len(names))
            for layer in LAYERS:
                for name in names[first:] + names[:first]:
                    if (name, layer) not in times:
                        continue
                    try:
                        measured = gauge.measure(f"{name}/{layer}", libraries[name, layer])
                        times[name, layer].append(measured.latency_ms)
                    except ProgramFailed as failure:
                        print(f"{name}, {layer}: {failure}", flush=True)
                        del times[name, layer]
    latencies: Latencies = {}
    for (name, layer), values in times.items():
        latencies.setdefault(name, {})[layer] = statistics.median(values)
    return latencies
