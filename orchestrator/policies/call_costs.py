"""What a call would take at widths that were not measured, by terms that hold on any device.

Multiply-accumulates, with the output channels rounded up to what vectors hold; outputs written,
inputs read, weights; and a constant. How much each counts is fitted to what the run has measured:
least squares of relative errors with no negative weight (Lawson and Hanson, Solving Least Squares
Problems, chapter 23), so that no task is taken to be slower for being narrower. Unlike the trees of
``latency_model`` it has no steps but those of vectors: a search may follow it channel by channel.
So few weights fit one pace of a device: what earlier runs measured, at another, made them worse
(benchmarks/EXPERIMENTS.md, what candidates take).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.optimize import nnls

from orchestrator.policies.latency_model import Shape
from schemas.table import TaskKind

_LANES = (8, 16, 4, 1)
"""Channels that go at once (float32 in vectors of 256, 512 and 128 bits). The first ones count
where measurements do not tell, as those of a network all of whose widths are their multiples."""
_LEAST_SAMPLES = 8


class CallCosts:
    """For each kind of task the weights of its terms.

    A kind of which fewer than ``_LEAST_SAMPLES`` were measured goes by its multiply-accumulates.
    """

    def __init__(self, samples: Mapping[Shape, float]) -> None:
        """``samples``: shape -> latency of one call in ms."""
        kinds = {shape.kind for shape in samples}
        found = {
            kind: _fitted({shape: ms for shape, ms in samples.items() if shape.kind == kind})
            for kind in sorted(kinds)
        }
        self._weights: dict[TaskKind, tuple[float, ...]] = {
            kind: weights for kind, weights in found.items() if weights is not None
        }

    def ratio(self, shape: Shape, outputs: float, inputs: float) -> float:
        """What a call takes with these shares of its output and input channels, over what it takes
        with all of them."""
        narrower = shape.scaled(outputs, inputs)
        weights = self._weights.get(shape.kind)
        if weights is None:
            return narrower.macs / shape.macs
        before, after = (
            sum(weight * term for weight, term in zip(weights, _terms(one), strict=True))
            for one in (shape, narrower)
        )
        return after / before if before > 0.0 else narrower.macs / shape.macs


def _terms(shape: Shape) -> tuple[float, ...]:
    width = max(1, round(shape.outputs))
    read = shape.pixels * shape.depth
    vectors = (math.ceil(width / lanes) * lanes * read for lanes in _LANES)
    return (*vectors, width * shape.pixels, read, width * shape.depth, 1.0)


def _fitted(samples: Mapping[Shape, float]) -> tuple[float, ...] | None:
    if len(samples) < _LEAST_SAMPLES:
        return None
    rows = np.array([_terms(shape) for shape in samples])
    rows /= np.maximum(np.array(list(samples.values())), 1e-9)[:, None]
    scale = rows.max(axis=0)
    weights, _ = nnls(rows / scale, np.ones(len(rows)))
    return tuple(float(weight) for weight in weights / scale)
