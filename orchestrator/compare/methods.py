"""The methods that are compared: each is a run with settings of its own.

All share the dense network's weights, the fine-tuning recipe, the floor, the device and ours'
records of measured programs; the others share theirs, too. Every final network gets twice the
trials of the search times its tasks. The dense one, to which all are compared, gets as many times
its tasks as the most tuned task of ours had, those of the programs it descends from included. They
are pooled as in any run: each task gets ``tune.min_trials_per_task``, the rest goes where it pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.config import RunConfig

DENSE, OURS, NETADAPT, ORIGINAL = "dense", "ours", "netadapt", "cprune-original"
START = "start"
"""The run that trains the dense network and tunes it for the search; no row of the table."""
RECORDS, RECORDS_OF_OTHERS = "records.sqlite", "records-others.sqlite"
RECORDS_OF_START = "records-start.sqlite"
"""Ours has none of what the others measure: what its programs cost may not depend on who was first.
They begin with a copy of its records. Each ablation begins as ours did, with a copy of those of the
dense network's tuning: ours' programs are what it is to do without."""

_ENDLESS = {
    "max_rounds": 1_000_000,
    "max_hours": 24_000.0,
    "max_steps": None,
    "max_device_hours": None,
    "max_gpu_hours": None,
    "max_measured_programs": None,
}
_ORIGINAL: Mapping[str, Any] = {
    "step_accuracy_ratio": 0.995,
    "step_latency_ratio": 0.99,
    "min_width_fraction": 0.2,
    "ranking": "l1",
}
"""alpha, beta, the largest sparsity and the ranking of CPrune's code."""

_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    START: {"budget": {"max_rounds": 0}},
    DENSE: {"budget": {"max_rounds": 0}, "tune": {"max_s": None, "max_device_s": None}},
    OURS: {},
    "uniform-l1": {"prune": {"policy": "uniform", "ranking": "l1"}, "budget": _ENDLESS},
    "fpgm": {"prune": {"policy": "uniform", "ranking": "fpgm"}, "budget": _ENDLESS},
    "depgraph-global": {"prune": {"policy": "global", "ranking": "l2"}, "budget": _ENDLESS},
    NETADAPT: {"prune": {"policy": "netadapt"}, "budget": _ENDLESS},
    ORIGINAL: {"prune": {"policy": "original", **_ORIGINAL}, "budget": _ENDLESS},
    "without structure": {"prune": {"without": ["structure"]}},
    "without transplants": {"prune": {"without": ["transplants"]}},
    "without associated": {"prune": {"without": ["associated"]}},
    "without blocks": {"prune": {"without": ["blocks"]}},
    "without retuning": {"tune": {"retune_trials_per_task": 0}},
}
BASELINES: tuple[str, ...] = (
    "uniform-l1",
    "fpgm",
    "depgraph-global",
    NETADAPT,
    ORIGINAL,
)
ABLATIONS: tuple[str, ...] = (
    "without structure",
    "without transplants",
    "without associated",
    "without blocks",
    "without retuning",
)
PAPER_TRIALS, QUICK_TRIALS = 70, 8
NETADAPT_TRAINING = 3.0
"""Times our seconds of training after which NetAdapt is stopped: it trains a candidate for every
group in every step, for days where nothing stops it."""


@dataclass(frozen=True)
class Spent:
    """What ours took: candidates it trained; most trials for a task of its final network; seconds
    of training."""

    candidates: int = 0
    most_trials: int = 0
    train_s: float = 0.0


def method_config(
    base: RunConfig,
    method: str,
    folder: Path,
    *,
    checkpoint: Path | None = None,
    ours: Spent = Spent(),
    original_candidates: int = 0,
) -> RunConfig:
    """The configuration of one method's run, which lies in ``folder``.

    ``checkpoint``: the dense network's weights, for all but the run that trains it. ``ours``: the
    others get no less. ``original_candidates``: at which the original algorithm is stopped; 0: at
    its end.
    """
    trials = base.tune.trials_per_task
    final_trials = trials if method == START else 2 * trials
    if method == DENSE:
        final_trials = max(final_trials, ours.most_trials)
    run = method.replace(" ", "-")
    records = RECORDS if method in (START, OURS) else RECORDS_OF_OTHERS
    if method in ABLATIONS:
        records = f"records-{run}.sqlite"
    settings: dict[str, Any] = {
        "run": run,
        "output": str(folder),
        "compare_uniform": None,
        "tune": {"final_trials_per_task": final_trials},
        "records": {"share": True, "path": str(folder / records)},
    }
    if checkpoint is not None:
        settings["model"] = {"checkpoint": str(checkpoint)}
    settings = merged(settings, _SETTINGS[method])
    settings["prune"] = {**settings.get("prune", {}), "without": _left_out(base, method)}
    if settings["prune"].get("policy") in ("uniform", "global"):
        settings["prune"]["least_candidates"] = ours.candidates
        settings["prune"]["least_train_s"] = ours.train_s
    if method == NETADAPT:
        most_s = max(1.0, NETADAPT_TRAINING * ours.train_s)  # ours may have trained nothing
        settings["budget"] = {**settings["budget"], "max_gpu_hours": most_s / 3600.0}
    if method == ORIGINAL:
        least = max(_ORIGINAL["min_width_fraction"], base.prune.min_width_fraction)
        settings["prune"]["min_width_fraction"] = least
        if original_candidates:
            settings["budget"] = {**settings["budget"], "max_rounds": original_candidates}
    return RunConfig.model_validate(merged(base.model_dump(mode="json"), settings))


def _left_out(base: RunConfig, method: str) -> list[str]:
    """Parts of ours that a method does without; the others' methods have none of them to leave
    out."""
    if method in BASELINES:
        return []
    own = _SETTINGS[method].get("prune", {}).get("without", [])
    return list(dict.fromkeys((*base.prune.without, *own)))


def with_trials(base: RunConfig, trials: int) -> RunConfig:
    """The configuration with so many trials for each task in the search."""
    least = min(trials, base.tune.min_trials_per_task)
    changes = {"tune": {"trials_per_task": trials, "min_trials_per_task": least}}
    return RunConfig.model_validate(merged(base.model_dump(mode="json"), changes))


def quick(base: RunConfig) -> RunConfig:
    """The quick form: few images, epochs, rounds and trials. Its figures prove little."""
    changes: dict[str, Any] = {
        "train": {"epochs": min(base.train.epochs, 24)},
        "fine_tune": {
            "short_epochs": min(base.fine_tune.short_epochs, 1),
            "long_epochs": min(base.fine_tune.long_epochs, 4),
        },
        "tune": {
            "retune_trials_per_task": min(base.tune.retune_trials_per_task, 4),
            "transplant_variants": min(base.tune.transplant_variants, 2),
        },
        "budget": {"max_rounds": min(base.budget.max_rounds, 20)},
    }
    if base.data.synthetic:
        few = {"train": 4000, "validation": 4000, "test": 2000}
        changes["data"] = {"arguments": {**base.data.arguments, **few}}
    smaller = RunConfig.model_validate(merged(base.model_dump(mode="json"), changes))
    return with_trials(smaller, QUICK_TRIALS)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` put in, section by section."""
    found = dict(base)
    for name, value in changes.items():
        inner = found.get(name)
        both = isinstance(inner, dict) and isinstance(value, Mapping)
        found[name] = merged(inner, value) if both and inner is not None else value
    return found
