"""What a run would do, and roughly how long it would take. Nothing is written or started.

The estimate multiplies what the configuration asks for with the ranges below. They are wide; their
lower halves hold what a quickstart took on 2 cores (a program 0.5 to 0.6 s, a screening 1
to 8 s, a comparison 6 to 15 s). It says where the time would go, not more.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import doctor
from orchestrator.doctor import Check

if TYPE_CHECKING:
    from schemas.config import RunConfig, TargetConfig

Range = tuple[float, float]

TASKS: dict[str, Range] = {
    "small_resnet": (8, 12),
    "torchvision:resnet18": (12, 22),
    "torchvision:mobilenet_v2": (25, 40),
    "torchvision:vgg16_bn": (10, 16),
}
"""Tasks of a network after fusion; UNKNOWN_TASKS for others."""
UNKNOWN_TASKS: Range = (10, 40)
PROGRAM_S: Range = (0.5, 1.5)
"""Building and measuring one program in warm processes."""
SCREEN_S: Range = (1.0, 8.0)
"""Transplanting and measuring one candidate's programs."""
COMPARE_S: Range = (6.0, 20.0)
"""Building two whole networks and measuring them in turns."""
EXPORT_S: Range = (15.0, 90.0)
START_S: Range = (10.0, 40.0)
"""Ray, tracker, devices, and the first imports of the warm processes."""
IMAGE_S: Range = (0.0004, 0.004)
"""Training on one 32x32 image, forward and backward, small network on 2 cores; GPUs are faster."""
IMAGES = {"digits": 1078, "cifar10": 40_000}
"""Training images of the data sets whose size is known without reading them."""
ROUNDS: Range = (3, 12)
"""Rounds until no step pays, where the budget allows them."""


@dataclass(frozen=True)
class Phase:
    """One part of the run: what it does and how long it may take."""

    name: str
    what: str
    seconds: Range | None


@dataclass(frozen=True)
class Plan:
    """The whole plan; ``checks`` with level fail would stop the run."""

    phases: tuple[Phase, ...]
    checks: tuple[Check, ...]

    @property
    def seconds(self) -> Range | None:
        """The sum of the phases, None where one of them cannot be told."""
        low = high = 0.0
        for phase in self.phases:
            if phase.seconds is None:
                return None
            low, high = low + phase.seconds[0], high + phase.seconds[1]
        return low, high

    @property
    def fit(self) -> bool:
        """Whether nothing stands in the way."""
        return all(check.level != "fail" for check in self.checks)


def make_plan(config: RunConfig) -> Plan:
    """The plan of a resolved configuration."""
    checks = [*file_checks(config), *machine_checks(config), *_pin_checks()]
    for target in config.targets:
        checks.append(_device_check(target))
    return Plan(phases=tuple(_phases(config)), checks=tuple(checks))


# ---------------------------------------------------------------------------------- checks


def file_checks(config: RunConfig) -> Iterator[Check]:
    """Every file, folder and module that the configuration names is there."""
    named: list[tuple[str, str | None]] = [
        ("model.checkpoint", config.model.checkpoint),
        ("data.root", config.data.root),
    ]
    for index, target in enumerate(config.targets):
        if target.device == "replay":
            named.append((f"targets[{index}].recording", target.recording))
    for name, value in named:
        if value is None or "://" in value:
            continue
        if Path(value).exists():
            yield Check(name, "ok", value)
        else:
            cure = f"correct {name}; a relative path begins at the current folder"
            yield Check(name, "fail", f"{value} does not exist", cure)
    references = [("model.name", config.model.name), ("data.name", config.data.name)]
    references.append(("metric", config.metric))
    for name, value in references:
        if ":" in value and not value.startswith("torchvision:"):
            yield _module_check(name, value)


def _module_check(name: str, reference: str) -> Check:
    module = reference.partition(":")[0].partition(".")[0]
    path = list(sys.path)
    try:
        sys.path.insert(0, os.getcwd())
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    finally:
        sys.path[:] = path
    if found:
        return Check(name, "ok", reference)
    cure = f"put {module}.py beside the configuration, run from its folder, or install it"
    return Check(name, "fail", f"{reference}: there is no module {module}", cure)


def machine_checks(config: RunConfig) -> Iterator[Check]:
    """What a run needs before it starts: a compiler and room on the disk."""
    yield doctor.check_compiler()
    yield doctor.check_disk(config.output)


def _pin_checks() -> Iterator[Check]:
    yield doctor.check_python()
    for name, wanted in doctor.PINS.items():
        version = doctor.installed_version(name)
        level: doctor.Level = "ok" if version == wanted else "fail"
        cure = "" if level == "ok" else f"pip install {name}=={wanted}"
        yield Check(name, level, version or "missing", cure)
    yield doctor.check_ray()
    yield doctor.check_memory()


def _device_check(target: TargetConfig) -> Check:
    name = f"target {target.name}"
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if target.device == "replay":
        found = f"answers from {target.recording}: results will be labelled simulated"
        return Check(name, "warn", found, "use device: local or tracker for real latencies")
    if target.device == "tracker":
        address = (target.tracker_host, target.tracker_port or 0)
        try:
            with socket.create_connection(address, timeout=3.0):
                pass
        except OSError as error:
            found = f"no tracker answers at {address[0]}:{address[1]} ({error})"
            return Check(name, "fail", found, "start it, or correct tracker_host and tracker_port")
        return Check(name, "ok", f"tracker at {address[0]}:{address[1]}, key {target.key}")
    missing = [core for core in target.cores or [] if here and core not in here]
    if missing:
        cure = f"name cores among {here}"
        return Check(name, "fail", f"cores {missing} are not this process's to use", cure)
    available = len(target.cores or here) or os.cpu_count() or 1
    if target.threads > available:
        cure = f"set threads to at most {available}, or 0 for all"
        return Check(name, "fail", f"{target.threads} threads on {available} cores", cure)
    return Check(name, "ok", f"this machine, {target.threads or available} threads")


# -------------------------------------------------------------------------------- estimate


def _phases(config: RunConfig) -> Iterator[Phase]:
    tune, prune, fine = config.tune, config.prune, config.fine_tune
    targets = len(config.targets)
    tasks = TASKS.get(config.model.name, UNKNOWN_TASKS)
    images = IMAGES.get(config.data.name)
    epoch: Range | None = None
    if images is not None:
        pixels = (config.data.image_size / 32) ** 2
        epoch = _times(IMAGE_S, images * pixels)
    rounds = (min(ROUNDS[0], config.budget.max_rounds), min(ROUNDS[1], config.budget.max_rounds))
    yield Phase("start", "Ray, tracker, devices", START_S)
    if config.model.checkpoint:
        yield Phase("prepare", f"load {config.model.checkpoint}, find channel groups", (2.0, 20.0))
    else:
        yield Phase(
            "prepare",
            f"train {config.model.name} for {config.train.epochs} epochs, find channel groups",
            _times(epoch, config.train.epochs),
        )
    on = f"on {targets} target{'s' if targets > 1 else ''}"
    yield Phase(
        "tune",
        f"{tune.trials_per_task} programs for each of about {tasks[0]:g}-{tasks[1]:g} tasks {on}",
        _product(tasks, _times(PROGRAM_S, tune.trials_per_task * targets)),
    )
    together = prune.tasks_per_round > 1
    candidates = (prune.tasks_per_round + together) * prune.widths_per_task
    trained = min(prune.fine_tuned_per_round, candidates)
    waves = -(-trained // fine.max_parallel)
    one = _sum(
        _times(SCREEN_S, candidates * targets),
        _times(epoch, fine.short_epochs * waves * targets),
        _times(COMPARE_S, trained * targets),
        _times(PROGRAM_S, 2 * tune.retune_trials_per_task * targets),
    )
    yield Phase(
        "search",
        f"up to {config.budget.max_rounds} rounds, each: {candidates} candidates screened, "
        f"{trained} fine-tuned for {fine.short_epochs} epochs and compared",
        _product(rounds, one),
    )
    extra = max(0, tune.final_trials_per_task - tune.trials_per_task)
    uniform = config.compare_uniform is not None
    tuned = extra * 2 + (tune.final_trials_per_task if uniform else 0)
    training = fine.long_epochs * targets + (config.train.epochs if uniform else 0)
    yield Phase(
        "finish",
        f"{fine.long_epochs} epochs of fine-tuning, {tune.final_trials_per_task} programs in all "
        "for each task, of the dense network too"
        + (", and of the uniformly narrower one" if uniform else ""),
        _sum(_product(tasks, _times(PROGRAM_S, tuned * targets)), _times(epoch, training)),
    )
    yield Phase("export", "test split, library, ONNX, report", _times(EXPORT_S, targets))


def _times(span: Range | None, factor: float) -> Range | None:
    return None if span is None else (span[0] * factor, span[1] * factor)


def _product(left: Range, right: Range | None) -> Range | None:
    return None if right is None else (left[0] * right[0], left[1] * right[1])


def _sum(*spans: Range | None) -> Range | None:
    low = high = 0.0
    for span in spans:
        if span is None:
            return None
        low, high = low + span[0], high + span[1]
    return low, high


def in_words(span: Range | None) -> str:
    """A range of seconds for people."""
    if span is None:
        return "depends on the size of the data set"
    low, high = span
    if high < 120:
        return f"{low:.0f}-{high:.0f} s"
    if high < 7200:
        return f"{max(1, low / 60):.0f}-{high / 60:.0f} min"
    return f"{low / 3600:.1f}-{high / 3600:.1f} h"


def run_folder(config: RunConfig) -> Path:
    """Where the run's files go."""
    return Path(config.output) / config.run


def terminal_width() -> int:
    """Columns to print in."""
    return max(80, shutil.get_terminal_size((100, 24)).columns)
