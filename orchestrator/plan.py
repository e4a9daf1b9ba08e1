"""What a run would do, and roughly how long it would take. Nothing is written or started.

The estimate multiplies what the configuration asks for with the ranges below. They are wide; their
lower halves hold what a quickstart took on 2 cores (a program 0.5 to 0.6 s, a screening 1
to 8 s, a comparison 6 to 15 s). It says where the time would go, not more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import doctor
from orchestrator.doctor import Check
from orchestrator.plan_checks import start_checks
from orchestrator.wording import count
from workers.pruning.gradual import steps_for

if TYPE_CHECKING:
    from schemas.config import RunConfig

Range = tuple[float, float]

TASKS: dict[str, Range] = {
    "small_resnet": (8, 12),
    "resnet18_cifar": (12, 22),
    "vgg16_cifar": (10, 18),
    "mobilenet_v2_cifar": (25, 40),
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
WORK = {
    "small_resnet": 1.0,
    "resnet18_cifar": 46.0,
    "vgg16_cifar": 26.0,
    "mobilenet_v2_cifar": 8.0,
    "torchvision:resnet18": 3.0,
    "torchvision:mobilenet_v2": 1.0,
    "torchvision:vgg16_bn": 26.0,
}
"""Multiply-adds on an image of those networks at their default width, over small_resnet's; what
others take is not known here."""
IMAGES = {"digits": 1078, "drawn": 6000, "cifar10": 40_000}
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
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """What stands in the way."""
        return tuple(check for check in self.checks if check.level == "fail")


def make_plan(config: RunConfig) -> Plan:
    """The plan of a resolved configuration."""
    checks = (*start_checks(config), *_version_checks())
    return Plan(phases=tuple(_phases(config)), checks=checks)


def _version_checks() -> Iterator[Check]:
    yield doctor.check_python()
    for name, wanted in doctor.PINS.items():
        version = doctor.installed_version(name)
        level: doctor.Level = "ok" if version == wanted else "fail"
        cure = "" if level == "ok" else f"pip install {name}=={wanted}"
        yield Check(name, level, version or "missing", cure)
    yield doctor.check_ray()
    yield doctor.check_memory()


# -------------------------------------------------------------------------------- estimate


def _phases(config: RunConfig) -> Iterator[Phase]:
    tune, prune, fine = config.tune, config.prune, config.fine_tune
    targets = len(config.targets)
    tasks = TASKS.get(config.model.name, UNKNOWN_TASKS)
    epoch = _epoch(config)
    rounds = (min(ROUNDS[0], config.budget.max_rounds), min(ROUNDS[1], config.budget.max_rounds))
    yield Phase("start", "Ray, tracker, devices", START_S)
    if config.model.checkpoint:
        yield Phase("prepare", f"load {config.model.checkpoint}, find channel groups", (2.0, 20.0))
    else:
        yield Phase(
            "prepare",
            f"train {config.model.name} for {count(config.train.epochs, 'epoch')}, find channel "
            "groups",
            _times(epoch, config.train.epochs),
        )
    on = f"on {count(targets, 'target')}"
    yield Phase(
        "tune",
        f"{count(tune.trials_per_task, 'program')} for each of about "
        f"{tasks[0]:g}-{tasks[1]:g} tasks {on}",
        _product(tasks, _times(PROGRAM_S, tune.trials_per_task * targets)),
    )
    together = prune.tasks_per_round > 1
    candidates = (prune.tasks_per_round + together) * prune.widths_per_task
    trained = min(prune.fine_tuned_per_round, candidates)
    fewest = 1 if trained == 1 else candidates  # one cut of the whole network, while there is one
    # The deepest cut takes half of every width, so three quarters of the multiplications.
    steps = steps_for(4, 1, fine.most_pruned_at_once)
    shorter = (trained - 1) * fine.short_epochs
    epochs = (fine.long_epochs + shorter, steps * fine.long_epochs + shorter)
    one = _sum(
        (SCREEN_S[0] * fewest * targets, SCREEN_S[1] * candidates * targets),
        _times(_product(epochs, epoch), targets / min(trained, fine.max_parallel)),
        _times(COMPARE_S, trained * targets),
        _times(PROGRAM_S, 2 * tune.retune_trials_per_task * targets),
    )
    yield Phase(
        "search",
        f"up to {count(config.budget.max_rounds, 'round')}, each: "
        f"{'' if fewest == candidates else 'up to '}{count(candidates, 'candidate')} screened, "
        f"{trained} fine-tuned for "
        f"{fine.short_epochs} or {count(fine.long_epochs, 'epoch')} (deep cuts for up to "
        f"{steps} times as many) and compared",
        _product(rounds, one),
    )
    extra = max(0, tune.final_trials_per_task - tune.trials_per_task)
    uniform = config.compare_uniform is not None
    chooses = prune.policy in ("uniform", "global")  # between two networks, both tuned
    tuned = extra + tune.final_trials_per_task * (1 + uniform + chooses)
    training = fine.long_epochs * targets + (config.train.epochs if uniform else 0)
    yield Phase(
        "finish",
        f"{count(fine.long_epochs, 'epoch')} of fine-tuning, "
        f"{count(tune.final_trials_per_task, 'program')} in all for each task, of the dense "
        "network too"
        + (", and of the uniformly narrower one" if uniform else "")
        + (", and of the one before the last step" if chooses else ""),
        _sum(_product(tasks, _times(PROGRAM_S, tuned * targets)), _times(epoch, training)),
    )
    yield Phase("export", "test split, library, ONNX, report", _times(EXPORT_S, targets))


def _epoch(config: RunConfig) -> Range | None:
    """Seconds of training on every image once, None where their number is not known, or what the
    network takes."""
    model, data = config.model, config.data
    if model.name not in WORK:
        return None
    images: float | None = IMAGES.get(data.name)
    if data.name == "imagefolder" and data.root is not None:
        images = _files_below(Path(data.root).expanduser())
    if images is None:
        return None
    if data.synthetic:
        images = _number(data.arguments.get("train"), images)
    width = _number(model.arguments.get("width"), 64) / 64
    fraction = _number(model.arguments.get("fraction"), 1)
    work = max(1.0, WORK[model.name] * (width * fraction) ** 2)
    return _times(IMAGE_S, images * work * (data.image_size / 32) ** 2)


def _files_below(root: Path) -> int | None:
    """Training images of a folder; None where there are none."""
    train = root / "train"
    folder = train if train.is_dir() else root
    return sum(len(files) for _, _, files in os.walk(folder)) or None


def _number(value: object, default: float) -> float:
    """An argument as it stands in the configuration, unless it is missing or no number."""
    return value if isinstance(value, int | float) else default


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
        return "depends on the network and the data set"
    low, high = span
    if high < 120:
        return f"{low:.0f}-{high:.0f} s"
    if high < 7200:
        return f"{max(1, low / 60):.0f}-{high / 60:.0f} min"
    return f"{low / 3600:.1f}-{high / 3600:.1f} h"


def run_folder(config: RunConfig) -> Path:
    """Where the run's files go."""
    return Path(config.output).expanduser() / config.run


def records(config: RunConfig) -> str:
    """Where the programs lie that the run shares with others, if it does."""
    from orchestrator.store.sharing import sharing_of

    sharing = sharing_of(config)
    if sharing is None:
        return "not shared with other runs (records.share is false)"
    if sharing.path is None:
        return f"not shared with other runs ({sharing.problem})"
    if not sharing.takes:
        return f"{sharing.path} (gives to other runs; takes none, because of targets[].recording)"
    return f"{sharing.path} (shared with other runs)"


def terminal_width() -> int:
    """Columns to print in."""
    return max(80, shutil.get_terminal_size((100, 24)).columns)
