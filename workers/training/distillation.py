"""A pruned network learns from the dense one: Hinton, Vinyals and Dean, Distilling the Knowledge in
a Neural Network (2015), section 2. The teacher sees the very images that the student sees, as they
were augmented (Beyer et al., Knowledge distillation: A good teacher is patient and consistent, CVPR
2022).
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.pruning.dependency import first_tensor

_KEPT_BYTES = 1 << 28


class Teacher:
    """A network in evaluation mode and how much is learned from it."""

    def __init__(
        self,
        network: nn.Module,
        weight: float,
        temperature: float,
        kept_bytes: int = _KEPT_BYTES,
    ) -> None:
        """``weight`` is its share of the loss; both outputs are softened by ``temperature``. It
        keeps outputs up to ``kept_bytes``."""
        self.network = network
        self._weight, self._temperature = weight, temperature
        self._kept: dict[Hashable, Tensor] = {}
        self._free_bytes = kept_bytes

    def loss(
        self, images: Tensor, logits: Tensor, by_labels: Tensor, batch: Hashable = None
    ) -> Tensor:
        """``by_labels``, the student's loss by the labels, mixed with how far its ``logits``
        (images, classes) are from the teacher's: the Kullback-Leibler divergence, times the square
        of the temperature, which keeps the gradients of both alike.

        ``batch`` names these very images, if they may come again: then the teacher need not look
        at them again."""
        wanted = self._outputs(images, batch).to(logits.device)
        divergence = functional.kl_div(
            functional.log_softmax(logits / self._temperature, dim=1),
            functional.log_softmax(wanted / self._temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1.0 - self._weight) * by_labels + self._weight * self._temperature**2 * divergence

    def _outputs(self, images: Tensor, batch: Hashable) -> Tensor:
        if batch in self._kept:
            return self._kept[batch]
        with torch.no_grad():
            outputs = first_tensor(self.network(images))
        size = outputs.numel() * outputs.element_size()
        if batch is not None and size <= self._free_bytes:
            self._free_bytes -= size
            self._kept[batch] = outputs.clone()
        return outputs
