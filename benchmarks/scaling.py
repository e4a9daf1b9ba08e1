"""How measuring scales: programs a minute with 1 to 32 simulated devices under one key.

    python benchmarks/scaling.py [--quick] [--devices N,N,...]

The devices are RPC servers of their own that answer every timing after 2 s and run nothing
(device_agents/emulated.py); the first figure is the basis of the others. All the rest is as in a
run: one program, built beforehand, is measured again and again by a fleet, with uploads and
sessions, and each measurement is stored by the table's actor in Ray, in a ledger on the disk.
A second table has the programs in stretches of five, as in a screening: four transplants beside
the program that they were taken from, all on one device.
It shows what the measuring itself costs, and says nothing of any program. The last line is JSON;
but for --quick, and a choice of devices, a picture is written to benchmarks/scaling.svg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import psutil
import ray
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tvm.s_tir import meta_schedule as ms

from device_agents.emulated import EmulatedRack
from device_agents.host_facts import cpu_model
from device_agents.tracker import TrackerProcess
from orchestrator.store.reader import LEDGER
from orchestrator.table_actor import TableClient, start_table
from schemas.config import MeasureConfig, TuneConfig
from schemas.target import TargetConfig
from workers.compiling.builder import Builder, Library
from workers.compiling.network import relax_network
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import build_table
from workers.compiling.workload import Workload
from workers.measuring.agents import DeviceAddress
from workers.measuring.fleet import Fleet
from workers.measuring.setup import resolve_target
from workers.pruning.fold import exported_program
from workers.tuning.search import Search, target_of
from workers.tuning.trials import Alongside, Trial, Trials, trial_of

SERVICE_S = 2.0
PROGRAMS_PER_DEVICE = 10
DEVICES = (1, 2, 4, 8, 16, 32)
QUICK_DEVICES = (1, 4)
STRETCH = 5
"""Programs of a stretch, with the one that the others are measured beside."""
STRETCH_DEVICES = (1, 8)
PICTURE = Path(__file__).with_name("scaling.svg")

_CONFIG = TuneConfig(build_timeout_s=60.0)


@dataclass(frozen=True)
class Row:
    """What so many devices came to. CPU times are of one measurement, over all its processes."""

    devices: int
    programs: int
    wall_s: float
    efficiency: float
    driver_cpu_ms: float
    table_cpu_ms: float

    @property
    def per_minute(self) -> float:
        """Programs measured in a minute."""
        return 60.0 * self.programs / self.wall_s

    @property
    def busy(self) -> float:
        """Share of the devices' time in which they measured; the rest they waited for us."""
        return SERVICE_S * self.programs / self.devices / self.wall_s


class Layer(nn.Module):
    """A small convolution with bias and relu."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 16, 16, 16) -> (1, 16, 16, 16)."""
        return torch.relu(self.conv(image))


class Bench:
    """One program, and the table that its measurements are stored in."""

    def __init__(self, folder: Path) -> None:
        description = resolve_target(TargetConfig())
        target = target_of(description)
        self._space = ScheduleSpace(target)
        self._folder = folder
        self._builder = Builder(description, 1, None, folder / "locks")
        network = relax_network(
            exported_program(Layer().eval(), torch.zeros(1, 16, 16, 16)), target
        )
        workloads = build_table(network, target).workloads.values()
        self._workload: Workload = next(w for w in workloads if w.task.kind == "conv2d")
        self._actor: Any = start_table(folder / LEDGER)
        self._table = TableClient(self._actor)
        self._table_pid = int(ray.get(self._actor.__ray_call__.remote(lambda _: os.getpid())))
        self._trial = self._proposed()
        self._library = self._built()
        self._builder.close()

    def measure(self, tracker: TrackerProcess, devices: int, stretch: int = 1) -> Row:
        """Measure ten programs for each of so many devices, in one batch, ``stretch`` of them
        in a row on one device; the result's efficiency is not known yet."""
        key = f"simulated-{devices}-{stretch}"
        address = DeviceAddress(tracker.host, tracker.port, key, None, "tracker", f"{key}-1t")
        fleet = Fleet(address, MeasureConfig(), devices)
        trials = Trials(self._builder, fleet, self._space, self._table, _CONFIG, self._folder)
        rack = EmulatedRack(tracker.host, tracker.port, key, devices, service_s=SERVICE_S)
        try:
            with rack:
                self._batch(trials, f"{key}/warm", devices, 1)  # starts the gauges' processes
                driver = [os.getpid(), *fleet.pids]
                before_s = _cpu_s(driver), _cpu_s([self._table_pid])
                began = time.monotonic()
                count = PROGRAMS_PER_DEVICE * devices
                self._batch(trials, f"{key}/timed", count, stretch)
                wall_s = time.monotonic() - began
                after_s = _cpu_s(driver), _cpu_s([self._table_pid])
                beside = count // stretch if stretch > 1 else 0  # they are not stored
                self._check(key, devices, count - beside + devices)
        finally:
            trials.close()
            fleet.close()
        driver_ms, table_ms = (
            1000 * (after - before) / count for before, after in zip(before_s, after_s, strict=True)
        )
        return Row(devices, count, wall_s, 1.0, driver_ms, table_ms)

    def _batch(self, trials: Trials, batch: str, count: int, stretch: int) -> None:
        """Measure the program under ``count`` names, and store all but each stretch's first."""
        names = [
            hashlib.sha256(f"{batch}/{number}".encode()).hexdigest() for number in range(count)
        ]
        libraries = []
        for name in names:
            path = self._folder / f"{name}.so"
            os.link(self._library.path, path)
            libraries.append(replace(self._library, path=path))
        programs = [
            replace(self._trial, batch=batch, program_id=name, position=position)
            for position, name in enumerate(names)
        ]
        if stretch == 1:
            trials.measure(programs, libraries)
            return
        starts = range(0, count, stretch)
        trials.measure_beside(
            [
                Alongside(
                    libraries[at], programs[at + 1 : at + stretch], libraries[at + 1 : at + stretch]
                )
                for at in starts
            ]
        )

    def _check(self, key: str, devices: int, count: int) -> None:
        """Every program is stored once, has been measured, and says that it is simulated."""
        stored = self._table.programs([self._workload.task.task_id], f"{key}-1t")
        measured = [program.measurement for program in stored if program.measurement]
        used = {measurement.device for measurement in measured}
        if len(stored) != count or len(measured) != count or len(used) != devices:
            failures = sorted({program.error for program in stored} - {""})
            raise SystemExit(
                f"{len(measured)} of {count} programs were measured on {len(used)} of {devices} "
                f"devices: {'; '.join(failures)}"
            )
        if not all(measurement.simulated for measurement in measured):
            raise SystemExit("a measurement does not say that it is simulated")

    def _proposed(self) -> Trial:
        workload = self._workload
        search = Search(self._space, population_size=8, generations=1)
        model = ms.cost_model.RandomModel()
        proposal, *_ = search.propose(workload, [], 1, 0, model)
        return trial_of(workload, "", proposal.schedule, "search")

    def _built(self) -> Library:
        trials = Trials(
            self._builder,
            None,  # type: ignore[arg-type]  # nothing is measured here
            self._space,
            self._table,
            _CONFIG,
            self._folder,
        )
        (library,) = trials.build([self._trial]).result()
        trials.close()
        if library.error:
            raise SystemExit(f"the program did not build: {library.error}")
        return library


def _cpu_s(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(time.user + time.system for time in times))


def _compared(row: Row, before: list[Row]) -> Row:
    """The row with its efficiency: of so many times the rate of the first one's devices."""
    basis = before[0] if before else row
    ideal = basis.per_minute / basis.devices * row.devices
    return replace(row, efficiency=row.per_minute / ideal)


_HEADER = (
    f"{'devices':>7} {'programs':>8} {'wall s':>7} {'a minute':>9} {'efficiency':>10} "
    f"{'busy':>6} {'driver CPU ms':>13} {'table CPU ms':>12}"
)


def _line(row: Row) -> str:
    return (
        f"{row.devices:>7} {row.programs:>8} {row.wall_s:>7.1f} {row.per_minute:>9.1f} "
        f"{row.efficiency:>10.1%} {row.busy:>6.1%} {row.driver_cpu_ms:>13.1f} "
        f"{row.table_cpu_ms:>12.1f}"
    )


def summary(rows: list[Row], stretches: list[Row], quick: bool) -> dict[str, object]:
    """The shares of so many times the first row's rate, and the CPU times at the most devices."""
    shares = {row.devices: row.efficiency for row in rows}
    most = max(rows, key=lambda row: row.devices)
    return {
        "quick": quick,
        "simulated": True,
        "efficiency_4": shares.get(4),
        "efficiency_8": shares.get(8),
        "efficiency_32": shares.get(32),
        "efficiency_in_stretches": {row.devices: row.efficiency for row in stretches},
        "driver_cpu_ms_per_measurement": most.driver_cpu_ms,
        "table_cpu_ms_per_measurement": most.table_cpu_ms,
        "rows": [{**asdict(row), "per_minute": row.per_minute, "busy": row.busy} for row in rows],
    }


def draw(rows: list[Row], path: Path) -> None:
    """Rates over devices, beside the line of so many times the rate of one."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    counts = [row.devices for row in rows]
    ideal = [rows[0].per_minute / rows[0].devices * count for count in counts]
    axes.plot(counts, ideal, color="#b9c4ce", label="so many times the rate of one device")
    axes.plot(counts, [row.per_minute for row in rows], "o-", color="#0f7a6c", label="measured")
    for row in rows[1:]:
        axes.annotate(
            f"{row.efficiency:.1%}",
            (row.devices, row.per_minute),
            textcoords="offset points",
            xytext=(6, -12),
        )
    axes.margins(x=0.12)  # room for the last share
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_yticks(ideal, [f"{rate:.0f}" for rate in ideal])
    axes.set_xlabel(f"simulated devices, {SERVICE_S:g} s for each program")
    axes.set_ylabel("programs measured and stored a minute")
    axes.legend(frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 and 4 devices")
    parser.add_argument("--devices", help="how many devices, one after the other: 1,32")
    return parser.parse_args()


def main() -> None:
    """Run the experiment and print its table."""
    arguments = parse()
    chosen = arguments.devices and [int(count) for count in arguments.devices.split(",")]
    counts = chosen or (QUICK_DEVICES if arguments.quick else DEVICES)
    os.environ.setdefault("RAY_worker_niceness", "0")  # as in a run
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    rows: list[Row] = []
    stretches: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, TrackerProcess() as tracker:
        try:
            bench = Bench(Path(folder))
            print(f"{cpu_model()}, {psutil.cpu_count()} cores; the devices are simulated")
            print(_HEADER)
            for count in counts:
                rows.append(_compared(bench.measure(tracker, count), rows))
                print(_line(rows[-1]), flush=True)
            print(f"in stretches of {STRETCH}, as in a screening")
            for count in chosen or (QUICK_DEVICES if arguments.quick else STRETCH_DEVICES):
                stretches.append(_compared(bench.measure(tracker, count, STRETCH), stretches))
                print(_line(stretches[-1]), flush=True)
        finally:
            ray.shutdown()
    if not arguments.quick and not chosen:
        draw(rows, PICTURE)
    print(json.dumps(summary(rows, stretches, bool(arguments.quick or chosen))))


if __name__ == "__main__":
    main()
