"""A pruned network learns from the dense one: Hinton, Vinyals and Dean, Distilling the Knowledge in
a Neural Network (2015), section 2. The teacher sees the very images that the student sees, as they
were augmented (Beyer et al., Knowledge distillation: A good teacher is patient and consistent, CVPR
2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.pruning.dependency import first_tensor


@dataclass(frozen=True)
class Teacher:
    """``weight`` is its share of the loss; both outputs are softened by ``temperature``."""

    network: nn.Module
    weight: float
    temperature: float

    def loss(self, images: Tensor, logits: Tensor, by_labels: Tensor) -> Tensor:
        """``by_labels``, the student's loss by the labels, mixed with how far its ``logits``
        (images, classes) are from the teacher's: the Kullback-Leibler divergence, times the square
        of the temperature, which keeps the gradients of both alike."""
        with torch.no_grad():
            wanted = first_tensor(self.network(images))
        divergence = functional.kl_div(
            functional.log_softmax(logits / self.temperature, dim=1),
            functional.log_softmax(wanted / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1.0 - self.weight) * by_labels + self.weight * self.temperature**2 * divergence
