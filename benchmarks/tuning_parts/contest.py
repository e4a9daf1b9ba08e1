"""The comparison: every search as a process, the final measurement, the table and the ratios."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device_agents.children import describe_exit, end_child, start_child
from device_agents.host_facts import cpu_model
from device_agents.local import LocalDevice
from device_agents.tracker import TrackerProcess
from schemas.target import TargetConfig
from tuning_parts import LAYERS
from tuning_parts.log import LOSSES, Event, read_log
from workers.measuring.setup import resolve_target

_SCRIPT = Path(__file__).parents[1] / "tuning.py"
_OURS_LIMIT_S = 1800.0
_TAIL_CHARACTERS = 1000


@dataclass
class Row:
    """One search: what it measured in its time, and what its programs are worth."""

    name: str
    end: str
    wall_s: float
    usable: int
    first_s: float | None
    lost: Counter[str]
    final_ms: dict[str, float] = field(default_factory=dict)

    @property
    def per_minute(self) -> float:
        """Usable programs for each minute from the process's start to the end of the search."""
        return 60 * self.usable / self.wall_s

    @property
    def failed_builds(self) -> int:
        """Programs that were proposed and not built."""
        return self.lost["time-out"] + self.lost["compile error"]


def run_contest(arguments: argparse.Namespace) -> None:
    """Run all searches and the final measurement; print the table and the ratios."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    trials = ["--trials", str(arguments.trials)]
    with tempfile.TemporaryDirectory(prefix="cprune-bench-") as folder:
        scratch = Path(folder)
        target = TargetConfig(threads=arguments.threads)
        description = json.dumps(resolve_target(target))
        label = "quick, " if arguments.quick else ""
        print(f"{cpu_model()}, target {description}, {label}{arguments.trials} trials each")
        print(f"TVM's builder has {arguments.stock_build_limit_s:g} s for a build")
        print(_HEADER, flush=True)
        ours: list[Row] = []
        for seed in range(arguments.seeds):
            options = ["--ours", str(seed), "--threads", str(arguments.threads), *trials]
            row = _search(f"ours-{seed}", scratch, options, _OURS_LIMIT_S)
            if row.end:
                raise SystemExit(f"our search did not end: {row.end}")
            ours.append(row)
        stock: list[Row] = []
        for name, search in (("stock-defaults", "defaults"), ("stock-our-search", "ours")):
            options = ["--stock", search, "--target", description, *trials]
            options += ["--stock-build-limit-s", str(arguments.stock_build_limit_s)]
            with _device_for(target, scratch / f"{name}-device") as port:
                options += ["--tracker-port", str(port)]
                stock.append(_search(name, scratch, options, arguments.stock_limit_s))

        from tuning_parts.final import measure_finals  # TVM and torch, once no search is timed

        rows = [*ours, *stock]
        folders = {row.name: scratch / row.name for row in rows}
        latencies = measure_finals(folders, arguments.threads, scratch / "final")
    for row in rows:
        row.final_ms = latencies.get(row.name, {})
    print(f"\n{_HEADER}")
    for row in rows:
        print(_line(row))
    defaults, same_search = stock
    for row in stock:
        print(_ratios_line(ours, row))
    print(json.dumps(summary(ours, defaults, same_search, arguments)))


def _search(name: str, scratch: Path, options: Sequence[str], limit_s: float) -> Row:
    """Run one search in a process of its own, and end all that it started."""
    folder = scratch / name
    folder.mkdir()
    output = folder / "output.log"
    command = [sys.executable, str(_SCRIPT), *options, "--folder", str(folder)]
    with output.open("wb") as log:
        began_s = time.monotonic()
        child = start_child(command, env={"TMPDIR": str(folder)}, log=log)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=limit_s)
        ended_s, code = time.monotonic(), child.poll()
    finally:
        end_child(child)
    events = read_log(folder)
    finished = next((event for event in events if event.outcome == "end"), None)
    end = ""
    if finished:
        ended_s = finished.at_s
    elif code is None:
        end = f"stopped at {limit_s:g} s"
    else:
        end = f"failed with {describe_exit(code)} after {ended_s - began_s:.0f} s"
        print(output.read_text(errors="replace")[-_TAIL_CHARACTERS:], file=sys.stderr)
    measured_s = [event.at_s - began_s for event in events if event.outcome == "measured"]
    row = Row(
        name=name,
        end=end,
        wall_s=ended_s - began_s,
        usable=len(measured_s),
        first_s=min(measured_s, default=None),
        lost=Counter(event.outcome for event in events if event.outcome in LOSSES),
    )
    print(_line(row), flush=True)
    _print_losses(events)
    return row


def _print_losses(events: list[Event]) -> None:
    """The commonest reason of each kind of loss."""
    for kind in LOSSES:
        reasons = Counter(event.why.splitlines()[-1] for event in events if event.outcome == kind)
        for reason, count in reasons.most_common(1):
            print(f"    {kind}, {count} of {reasons.total()}: {reason}", flush=True)


@contextlib.contextmanager
def _device_for(target: TargetConfig, folder: Path) -> Iterator[int]:
    """The tracker's port of a local device, which is started as ``open_device`` starts it."""
    folder.mkdir()
    with TrackerProcess(log_path=folder / "tracker.log") as tracker:
        with LocalDevice(target, tracker.host, tracker.port, work_dir=folder) as device:
            device.start()
            yield tracker.port


def summary(
    ours: list[Row], defaults: Row, same_search: Row, arguments: argparse.Namespace
) -> dict[str, object]:
    """Ours (the median of the seeds) / stock; None where a side has nothing to compare."""
    return {
        "quick": arguments.quick,
        "trials": arguments.trials,
        "seeds": len(ours),
        "stock_build_limit_s": arguments.stock_build_limit_s,
        "programs_per_minute_ratio": _ratio(ours, defaults, _per_minute),
        "programs_per_minute_ratio_same_search": _ratio(ours, same_search, _per_minute),
        "first_program_ratio": _ratio(ours, defaults, _first_s),
        "first_program_ratio_same_search": _ratio(ours, same_search, _first_s),
        "final_latency_ratio": _final_ratio(ours, defaults),
        "final_latency_ratio_same_search": _final_ratio(ours, same_search),
        "final_latency_ratio_by_layer": {
            layer: _final_ratio(ours, defaults, (layer,)) for layer in LAYERS
        },
        "failed_builds": {
            "ours": statistics.median(row.failed_builds for row in ours),
            "stock_defaults": defaults.failed_builds,
            "stock_our_search": same_search.failed_builds,
        },
        "ended_early": {row.name: row.end for row in (defaults, same_search) if row.end},
    }


def _per_minute(row: Row) -> float:
    return row.per_minute


def _first_s(row: Row) -> float | None:
    return row.first_s


def _final_ratio(ours: list[Row], stock: Row, layers: Sequence[str] = LAYERS) -> float | None:
    """Over those of the layers for which stock has a program."""
    shared = [layer for layer in layers if layer in stock.final_ms]
    return _ratio(ours, stock, lambda row: _sum_ms(row, shared))


def _sum_ms(row: Row, layers: Sequence[str]) -> float | None:
    if not layers or any(layer not in row.final_ms for layer in layers):
        return None
    return sum(row.final_ms[layer] for layer in layers)


def _ratio(ours: list[Row], stock: Row, figure: Callable[[Row], float | None]) -> float | None:
    mine = [value for value in map(figure, ours) if value is not None]
    other = figure(stock)
    return statistics.median(mine) / other if mine and other else None


_HEADER = (
    f"{'search':<17} {'usable':>6} {'wall s':>7} {'a minute':>8} {'first s':>7} "
    f"{'time-out':>8} {'compile error':>13} {'other':>5} "
    f"{'layer1 ms':>9} {'layer2 ms':>9} {'layer3 ms':>9} {'sum ms':>7}"
)


def _line(row: Row) -> str:
    layers = " ".join(f"{_figure(row.final_ms.get(layer), 3):>9}" for layer in LAYERS)
    return (
        f"{row.name:<17} {row.usable:>6} {row.wall_s:>7.0f} {row.per_minute:>8.1f} "
        f"{_figure(row.first_s, 1):>7} {row.lost['time-out']:>8} {row.lost['compile error']:>13} "
        f"{row.lost['other']:>5} {layers} {_figure(_sum_ms(row, LAYERS), 3):>7}"
        f"{'  ' + row.end if row.end else ''}"
    )


def _ratios_line(ours: list[Row], stock: Row) -> str:
    return (
        f"ours / {stock.name}: programs a minute {_figure(_ratio(ours, stock, _per_minute), 2)}, "
        f"seconds to the first program {_figure(_ratio(ours, stock, _first_s), 2)}, "
        f"final latency {_figure(_final_ratio(ours, stock), 2)}"
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
