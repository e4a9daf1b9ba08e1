"""How good a network is on a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import UserError
from workers.pruning.dependency import evaluating, first_tensor
from workers.training.images import ImageSet, batches, row_major
from workers.training.references import resolve_reference
from workers.training.runtime import computing


def accuracy_of_logits(logits: Tensor, labels: Tensor, metric: str = "top1") -> float:
    """The metric of logits ``(N, classes)`` against labels ``(N,)``, from 0 to 1.

    ``metric`` is ``top1`` (share of images whose largest logit is their class), ``top5`` (whose
    class is among the five largest) or ``module:function(logits, labels)``. For the first two an
    image with a logit that is not a number is none of its class, whatever comes first. Raises
    ``UserError`` when the user's function fails or gives no number from 0 to 1.
    """
    if metric == "top1":
        return int(((logits.argmax(1) == labels) & ~logits.isnan().any(1)).sum()) / len(labels)
    if metric == "top5":
        five = logits.topk(min(5, logits.shape[1]), dim=1).indices
        found = (five == labels[:, None]).any(1) & ~logits.isnan().any(1)
        return int(found.sum()) / len(labels)
    function: Callable[[Tensor, Tensor], Any] = resolve_reference(metric, "metric")
    try:
        value = float(function(logits, labels))
    except Exception as error:
        raise UserError(
            "metric",
            f"{metric} failed with {type(error).__name__}: {error}",
            "correct the function",
        ) from error
    if not 0.0 <= value <= 1.0:
        raise UserError(
            "metric", f"{metric} gave {value}", "return a number from 0 to 1, more is better"
        )
    return value


def logits_of(
    model: nn.Module,
    dataset: ImageSet,
    *,
    batch_size: int = 256,
    threads: int = 1,
    yield_cores: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, classes)`` of the network in evaluation mode, and labels ``(N,)``, on the CPU.

    ``yield_cores()`` is entered around each batch.
    """
    device = next(model.parameters()).device
    logits, labels = [], []
    with torch.no_grad(), evaluating(model):
        for images, classes in batches(dataset, batch_size, threads=threads):
            with yield_cores():
                logits.append(first_tensor(model(row_major(images).to(device))).float().cpu())
            labels.append(classes)
    return torch.cat(logits), torch.cat(labels)


def evaluate(
    model: nn.Module,
    dataset: ImageSet,
    metrics: Sequence[str],
    *,
    threads: int,
    yield_cores: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[float]:
    """Each metric of the network on a whole data set, from 0 to 1. The model stays where it is."""
    with computing(model, threads, None):
        logits, labels = logits_of(model, dataset, threads=threads, yield_cores=yield_cores)
    return [accuracy_of_logits(logits, labels, metric) for metric in metrics]
