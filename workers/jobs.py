"""Training work as plain functions: preparing the dense network, fine-tuning candidates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from schemas.config import TrainConfig
from schemas.network import Sensitivity, Structure, Trained
from schemas.progress import ProgressEvent
from schemas.work import (
    FineTuned,
    FineTuneWork,
    Outcome,
    Prepared,
    PrepareWork,
    UniformTrained,
    UniformWork,
    Work,
)
from workers.errors import LimitReached, cause_of
from workers.networks import Networks
from workers.pruning.fold import exported_program
from workers.pruning.gradual import steps_for, widths_on_the_way
from workers.pruning.ladder import global_ladder
from workers.pruning.sensitivity import sensitivities
from workers.pruning.surgery import prune_to
from workers.training.distillation import Teacher
from workers.training.images import batches, row_major
from workers.training.runtime import computing
from workers.training.train import TrainOutcome, train
from workers.training.weights import load_checkpoint

_SENSITIVITY_IMAGES = 256

YieldCores = Callable[[], AbstractContextManager[object]]
Progress = Callable[[ProgressEvent], None]


@dataclass(frozen=True)
class _Part:
    """One of several equally long parts of a training."""

    number: int
    count: int
    before_s: float

    def tells(self, progress: Progress | None) -> Progress | None:
        """Of the whole training, when told of this part."""
        if progress is None:
            return None
        return lambda event: progress(
            event.model_copy(
                update={
                    "epoch": event.epoch + self.number * event.epochs,
                    "epochs": self.count * event.epochs,
                }
            )
        )


_WHOLE = _Part(0, 1, 0.0)


class TrainingJobs:
    """Carries out training work in this process."""

    def __init__(
        self,
        networks: Networks,
        *,
        threads: int,
        yield_cores: YieldCores = nullcontext,
        progress: Progress | None = None,
    ) -> None:
        """``yield_cores()`` is entered around each batch."""
        self._networks = networks
        self._config = networks.config
        self._threads = threads
        self._yield_cores = yield_cores
        self._progress = progress

    def run(self, work: Work) -> Outcome:
        """Carry out one unit of work. Raises ``UserError`` for what the user can put right."""
        try:
            return self._done(work)
        except torch.OutOfMemoryError as error:
            raise LimitReached(
                "train.batch_size",
                f"the memory of the GPU was too small for a training ({cause_of(error)})",
                "lower it, or fine_tune.max_parallel where trainings share a GPU",
            ) from error

    def _done(self, work: Work) -> Outcome:
        if isinstance(work, PrepareWork):
            return self._prepare()
        if isinstance(work, UniformWork):
            model = self._networks.dense(work.fraction)
            return UniformTrained(network=self._from_scratch(model, self._config.train))
        if isinstance(work, FineTuneWork):
            return self._fine_tune(work)
        raise TypeError(f"a training job does no {work.kind} work")

    def _prepare(self) -> Prepared:
        model = self._networks.dense()
        groups = self._networks.groups
        # Asked before training: a network that cannot be compiled is not worth hours of it.
        exported_program(model, self._networks.batch)
        recipe = self._config.train
        if load_checkpoint(model, self._config.model):
            recipe = recipe.model_copy(update={"epochs": 0})
        dense = self._from_scratch(model, recipe)
        ladder: tuple[Structure, ...] = ()
        if self._config.prune.policy == "global":
            ladder = global_ladder(model, self._networks.image, groups, self._config.prune)
        return Prepared(
            dense=dense,
            groups=groups,
            blocks=self._networks.blocks if self._weighs_cuts else (),
            ladder=ladder,
            sensitivities=self._sensitivities(model, Structure()),
        )

    def _fine_tune(self, work: FineTuneWork) -> FineTuned:
        model: nn.Module = self._networks.load(work.parent)
        recipe = self._config.train.model_copy(
            update={
                "epochs": work.epochs,
                "learning_rate": work.learning_rate,
                "schedule": self._config.fine_tune.schedule,
            }
        )
        teacher = None if work.teacher is None else self._networks.teacher(work.teacher)
        pruned = self._networks.info(self._networks.of_structure(work.structure))
        steps = widths_on_the_way(
            self._networks.groups,
            work.parent.structure.widths,
            work.structure.widths,
            steps_for(work.parent.info.macs, pruned.macs, work.most_pruned_at_once),
        )
        outcome, diverged = None, ""
        for number, changed in enumerate(steps):
            if changed:
                model = prune_to(
                    model,
                    self._networks.image,
                    self._networks.groups,
                    changed,
                    self._config.prune.ranking,
                    self._networks.blocks if 0 in changed.values() else (),
                )
            part = _Part(number, len(steps), 0.0 if outcome is None else outcome.train_s)
            outcome = self._train(model, recipe, teacher, part, may_diverge=True)
            diverged = diverged or outcome.diverged
        assert outcome is not None, "there is at least one step"
        network = self._trained(model, work.structure, outcome, work.epochs * len(steps))
        return FineTuned(
            network=network,
            sensitivities=self._sensitivities(model, work.structure),
            diverged=diverged,
        )

    def _from_scratch(self, model: nn.Module, recipe: TrainConfig) -> Trained:
        outcome = self._train(model, recipe)
        return self._trained(model, Structure(), outcome, recipe.epochs)

    @property
    def _weighs_cuts(self) -> bool:
        """Whether the policy asks what cuts would cost, and takes out blocks."""
        return self._config.prune.policy in ("parallel", "predictor")

    def _sensitivities(self, model: nn.Module, structure: Structure) -> tuple[Sensitivity, ...]:
        """By validation images: on those it was trained on, a network has hardly an error left."""
        if not self._weighs_cuts:
            return ()
        prune = self._config.prune
        validation = self._networks.splits.validation
        count = min(len(validation), _SENSITIVITY_IMAGES)
        some = torch.arange(count) * len(validation) // count  # many sets lie class by class
        with computing(model, self._threads, None):
            return sensitivities(
                model,
                self._networks.image,
                [g for g in self._networks.groups if g.group_id not in structure.gone],
                ((row_major(images), labels) for images, labels in batches(validation, 32, some)),
                prune.ranking,
                yield_cores=self._yield_cores,
            )

    def _train(
        self,
        model: nn.Module,
        recipe: TrainConfig,
        teacher: Teacher | None = None,
        part: _Part = _WHOLE,
        *,
        may_diverge: bool = False,
    ) -> TrainOutcome:
        """Train it in place; ``train_s`` counts the parts before this one, too."""
        return train(
            model,
            self._networks.splits,
            recipe,
            self._config.seed,
            metric=self._config.metric,
            yield_cores=self._yield_cores,
            progress=part.tells(self._progress),
            threads=self._threads,
            teacher=teacher,
            spent_s=part.before_s,
            may_diverge=may_diverge,
        )

    def _trained(
        self, model: nn.Module, structure: Structure, outcome: TrainOutcome, epochs: int
    ) -> Trained:
        """Store a network whose training, or its last part, ended so."""
        model.eval()
        return Trained(
            structure=structure,
            weights=self._networks.store(model),
            val_accuracy=outcome.val_accuracy,
            info=self._networks.info(model),
            train_s=outcome.train_s,
            epochs=epochs,
        )
