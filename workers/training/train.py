"""Trains a network, or fine-tunes a pruned one: the same recipe, the same loop.

Stochastic gradient descent with the cosine schedule of Loshchilov and Hutter, SGDR (ICLR 2017),
section 3 without restarts; AdamW of the same authors, Decoupled Weight Decay Regularization (ICLR
2019); the one-cycle schedule of Smith and Topin, Super-Convergence (2018).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from schemas.config import TrainConfig
from schemas.progress import ProgressEvent
from workers.errors import TrainingDiverged, TrainingTimedOut
from workers.pruning.dependency import first_tensor
from workers.training.distillation import Teacher
from workers.training.images import Splits, TensorImages, augment, batches, row_major
from workers.training.metrics import accuracy_of_logits, logits_of
from workers.training.runtime import computing
from workers.training.weights import not_finite

_PROGRESS_INTERVAL_S = 0.5
_IMAGES = "data.name"


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training's history; number 0 is the network as it came."""

    number: int
    loss: float | None
    val_accuracy: float


@dataclass(frozen=True)
class TrainOutcome:
    """A training that ended. The model holds the weights of epoch ``best_epoch``."""

    val_accuracy: float
    best_epoch: int
    epochs: int
    train_s: float
    history: tuple[Epoch, ...]
    diverged: str = ""


def train(
    model: nn.Module,
    splits: Splits,
    recipe: TrainConfig,
    seed: int,
    *,
    metric: str = "top1",
    yield_cores: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: Callable[[ProgressEvent], None] | None = None,
    threads: int = 1,
    device: str | None = None,
    teacher: Teacher | None = None,
    spent_s: float = 0.0,
    may_diverge: bool = False,
) -> TrainOutcome:
    """Trains ``model`` in place and leaves it with the weights of its best validation epoch.

    With a ``teacher`` it learns from that besides the labels. A teacher belongs to one recipe's
    batch size and augmentation and to one training set: with the same seed, images in memory come
    again in every training, and the teacher need not look at them again.
    ``spent_s`` is what earlier parts of the same training took: it counts as part of its time.
    One that ``may_diverge``, as a pruned network's, ends where its loss is not finite, says so and
    has the best epoch before.

    The same seed and threads on the same machine give the same bits. ``yield_cores()`` is entered
    around each batch, so that between batches the cores can be given up. The epoch before training
    counts too: a fine-tuning never gives back a network worse than it took. The model ends on the
    device and in the mode (train or eval) it came in.

    Raises ``TrainingDiverged`` when the loss is not finite, naming the cause as far as it is known
    (with ``may_diverge`` only where that is the images, which every network would meet),
    ``TrainingTimedOut`` after ``recipe.timeout_s``; the model's weights are then those of no
    particular moment.
    """
    modes = {module: module.training for module in model.modules()}
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic() - spent_s
    state = _Run(recipe, progress, started)
    repeatable = isinstance(splits.train, TensorImages)
    broken = not_finite(model.state_dict())
    if broken:
        raise TrainingDiverged(
            "model.name",
            f"the network's weights are infinite or not a number before training ({broken[0]})",
            "correct how it is initialised",
        )
    with (
        computing(model, threads, device) as place,
        computing(teacher.network, threads, device) if teacher else nullcontext(),
        _seeded(place, seed),
    ):
        try:
            state.keep_if_best(
                model, None, _validate(model, splits, metric, recipe, threads, yield_cores)
            )
            steps = math.ceil(len(splits.train) / recipe.batch_size)
            optimizer, scheduler = _optimizer(model, recipe, steps)
            diverged = ""
            for _ in range(recipe.epochs):
                model.train()
                order = torch.randperm(len(splits.train), generator=generator)
                source = batches(splits.train, recipe.batch_size, order, threads)
                total, count = 0.0, 0
                for number in range(steps):
                    state.check()
                    with yield_cores():
                        batch = next(source, None)
                        if batch is None:
                            break
                        images = augment(batch[0], recipe.augmentation, generator)
                        known = (seed, state.epoch, number) if repeatable else None
                        lesson = None if teacher is None else partial(teacher.loss, batch=known)
                        loss = _step(model, images, batch[1], recipe, optimizer, place, lesson)
                    scheduler.step()
                    if not math.isfinite(loss):
                        error = _divergence(loss, images, state.epoch + 1, number)
                        if not may_diverge or error.field == _IMAGES:
                            raise error
                        diverged = error.message
                        break
                    total, count = total + loss, count + 1
                    state.report(number + 1, steps, total / count)
                if diverged:
                    break
                accuracy = _validate(model, splits, metric, recipe, threads, yield_cores)
                state.keep_if_best(model, total / max(1, count), accuracy)
                state.report(steps, steps, total / max(1, count), always=True)
            model.load_state_dict(state.best_weights)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return TrainOutcome(
        val_accuracy=state.best_accuracy,
        best_epoch=state.best_epoch,
        epochs=recipe.epochs,
        train_s=time.monotonic() - started,
        history=tuple(state.history),
        diverged=diverged,
    )


def _divergence(loss: float, images: Tensor, epoch: int, batch: int) -> TrainingDiverged:
    """Why the loss is not finite after this batch, counted from 0, of the epoch."""
    told = f"the loss became {loss} in epoch {epoch}"
    if not bool(images.isfinite().all()):
        return TrainingDiverged(
            _IMAGES,
            f"{told}: images of its batch {batch + 1} are infinite or not a number",
            "correct the images",
        )
    if epoch == 1 and batch == 0:
        return TrainingDiverged(
            "model.name",
            f"{told}, on finite images and weights, before any of them changed",
            "correct the network's forward pass",
        )
    return TrainingDiverged("train.learning_rate", told, "lower it (or that of fine_tune)")


class _Run:
    """The bookkeeping of one training: history, best weights, deadline, progress."""

    def __init__(
        self,
        recipe: TrainConfig,
        progress: Callable[[ProgressEvent], None] | None,
        started: float,
    ) -> None:
        self._recipe, self._progress = recipe, progress
        self._started, self._reported = started, -math.inf
        self.history: list[Epoch] = []
        self.best_accuracy, self.best_epoch = -1.0, 0
        self.best_weights: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """The last finished epoch."""
        return len(self.history) - 1

    def check(self) -> None:
        """Raises when the training is to end before its time."""
        if time.monotonic() - self._started > self._recipe.timeout_s:
            raise TrainingTimedOut(
                "train.timeout_s",
                f"a training took longer than {self._recipe.timeout_s:g} s "
                f"(in epoch {self.epoch + 1} of {self._recipe.epochs})",
                "raise it, or train fewer epochs",
            )

    def keep_if_best(self, model: nn.Module, loss: float | None, accuracy: float) -> None:
        """Notes a finished epoch (0: as the network came); of equal epochs the first is kept."""
        self.history.append(Epoch(len(self.history), loss, accuracy))
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch
            self.best_weights = copy.deepcopy(model.state_dict())

    def report(self, batch: int, count: int, loss: float, *, always: bool = False) -> None:
        """Tells how far the training is, at most every half second within an epoch."""
        now = time.monotonic()
        if self._progress is None or not (always or now - self._reported > _PROGRESS_INTERVAL_S):
            return
        self._reported = now
        self._progress(
            ProgressEvent(
                epoch=self.epoch if always else self.epoch + 1,
                epochs=self._recipe.epochs,
                batch=batch,
                batches=count,
                loss=loss,
                val_accuracy=self.history[-1].val_accuracy if self.history else None,
                elapsed_s=now - self._started,
            )
        )


@contextmanager
def _seeded(place: torch.device, seed: int) -> Iterator[None]:
    """Torch's own random numbers (dropout) from ``seed`` inside; as they were, outside."""
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _validate(
    model: nn.Module,
    splits: Splits,
    metric: str,
    recipe: TrainConfig,
    threads: int,
    yield_cores: Callable[[], AbstractContextManager[object]],
) -> float:
    logits, labels = logits_of(
        model,
        splits.validation,
        batch_size=max(recipe.batch_size, 128),
        threads=threads,
        yield_cores=yield_cores,
    )
    return accuracy_of_logits(logits, labels, metric)


def _step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: TrainConfig,
    optimizer: torch.optim.Optimizer,
    place: torch.device,
    lesson: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
) -> float:
    shown = row_major(images).to(place)
    logits = first_tensor(model(shown))
    loss = functional.cross_entropy(
        logits, labels.to(place), label_smoothing=recipe.label_smoothing
    )
    if lesson is not None:
        loss = lesson(shown, logits, loss)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _optimizer(
    model: nn.Module, recipe: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimiser and schedule for ``steps`` batches per epoch; biases and norms do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    sets = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate, total = recipe.learning_rate, max(1, steps * recipe.epochs)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            sets, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )
    else:
        optimizer = torch.optim.AdamW(sets, lr=rate)
    if recipe.schedule == "onecycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=total + 1
        )
    if recipe.schedule == "cosine":
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
