"""A model of latencies: what a task takes at a width that was never measured.

A straight line in logarithms, and XGBoost on what that leaves, after what was measured in this run
and in earlier ones on the same device model. Only ratios are asked of it: a narrower task's
prediction over its wider one's, times what the wider one was measured to take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schemas.network import Block, ChannelGroup
from schemas.table import KnownTask, NetworkTable, Task, TaskKind
from schemas.work import Tuned

_KINDS: tuple[TaskKind, ...] = ("conv2d", "depthwise", "dense", "other")
_ROUNDS, _LEAST_SAMPLES = 40, 12
_PARAMETERS = {
    "max_depth": 3,
    "eta": 0.2,
    "min_child_weight": 2,
    "nthread": 1,
    "seed": 0,
    "verbosity": 0,
}


@dataclass(frozen=True)
class Shape:
    """What the model knows of a task: multiply-accumulates, output channels, output pixels, and
    the sum behind each output."""

    kind: TaskKind
    macs: float
    outputs: float
    pixels: float
    depth: float

    @staticmethod
    def of(task: Task | KnownTask, output_shape: Sequence[int]) -> Shape:
        """The shape of a task whose calls have this output."""
        outputs = output_shape[-1]  # channels are last in compiled networks
        pixels = math.prod(output_shape[1:-1])
        return Shape(
            kind=task.kind,
            macs=max(1, task.macs),
            outputs=outputs,
            pixels=pixels,
            depth=max(1.0, task.macs / max(1, outputs * pixels)),
        )

    def scaled(self, outputs: float, inputs: float) -> Shape:
        """With these shares of its output and of its input channels."""
        inputs = 1.0 if self.kind == "depthwise" else inputs
        return replace(
            self,
            macs=self.macs * outputs * inputs,
            outputs=self.outputs * outputs,
            depth=self.depth * inputs,
        )

    def features(self) -> list[float]:
        """One row of the model's input."""
        width = round(self.outputs)
        return [
            math.log(self.macs),
            math.log(self.outputs),
            math.log(self.pixels),
            math.log(self.depth),
            float(_KINDS.index(self.kind)),
            float(math.gcd(width, 32)),
        ]


class LatencyModel:
    """Fitted to what was measured; fewer than a dozen tasks leave it to the multiplications."""

    def __init__(self, samples: Mapping[Shape, float]) -> None:
        """``samples``: shape -> latency of one call in ms."""
        self._booster: Any = None
        self._line = np.array([0.0, 1.0])
        if len(samples) < _LEAST_SAMPLES:
            return
        import xgboost

        rows = np.array([shape.features() for shape in samples])
        logs = np.log(np.maximum(np.array(list(samples.values())), 1e-9))
        design = np.column_stack([np.ones(len(rows)), rows[:, 0]])
        self._line, *_ = np.linalg.lstsq(design, logs, rcond=None)
        matrix = xgboost.DMatrix(rows, label=logs, base_margin=self._straight(rows))
        self._booster = xgboost.train({**_PARAMETERS, "base_score": 0.0}, matrix, _ROUNDS)

    def log_ms(self, shapes: Sequence[Shape]) -> np.ndarray[Any, Any]:
        """The logarithm of the predicted latency of each, up to a constant."""
        rows = np.array([shape.features() for shape in shapes])
        if self._booster is None:
            return self._straight(rows)
        import xgboost

        found: np.ndarray[Any, Any] = self._booster.predict(
            xgboost.DMatrix(rows, base_margin=self._straight(rows))
        )
        return found

    def _straight(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        line: np.ndarray[Any, Any] = self._line[0] + self._line[1] * rows[:, 0]
        return line


def samples_of(tuned: Sequence[Tuned]) -> dict[Shape, float]:
    """The measured tasks of these networks; of equal shapes the latest one's latency."""
    found: dict[Shape, float] = {}
    for network in tuned:
        shapes = shapes_of(network.table)
        for entry in network.latencies:
            shape = shapes.get(entry.task_id)
            if shape is not None and entry.program_id is not None and shape.kind != "other":
                found[shape] = entry.latency_ms
    return found


def samples_of_tasks(tasks: Sequence[KnownTask]) -> dict[Shape, float]:
    """What earlier runs know of tasks."""
    return {
        Shape.of(task, task.output_shape): task.latency_ms
        for task in tasks
        if task.kind != "other" and task.output_shape
    }


def shapes_of(table: NetworkTable) -> dict[str, Shape]:
    """The shape of each task that has a call site."""
    outputs = {subgraph.task_id: subgraph.output_shape for subgraph in table.subgraphs}
    return {
        task.task_id: Shape.of(task, outputs[task.task_id])
        for task in table.tasks
        if task.task_id in outputs
    }


def kept(
    shares: Mapping[str, float], widths: Mapping[str, int], groups: Sequence[ChannelGroup]
) -> float:
    """The share of a layer's channels that stay, where it computes or reads those of ``groups``,
    one after the other, as behind a concatenation. ``widths`` are what they have, ``shares`` what
    they keep of that, all where nothing is said."""
    channels = [widths.get(group.group_id, group.channels) for group in groups]
    left = [
        width * shares.get(group.group_id, 1.0)
        for width, group in zip(channels, groups, strict=True)
    ]
    return sum(left) / sum(channels) if channels else 1.0


def as_read(
    shares: Mapping[str, float], widths: Mapping[str, int], blocks: Sequence[Block]
) -> dict[str, float]:
    """``shares`` as what reads the groups sees them: where a plain layer is gone, in the place of
    its channels those that it read. ``blocks`` are in the order of the network."""
    seen = dict(shares)
    for block in blocks:
        group = block.groups[0]
        if block.source and shares.get(group) == 0.0:
            seen[group] = seen.get(block.source, 1.0) * widths[block.source] / widths[group]
    return seen


def predicted_ms(
    model: LatencyModel,
    programs: Tuned,
    groups: Sequence[ChannelGroup],
    widths: Mapping[str, int],
    cut: Mapping[str, int],
    blocks: Sequence[Block] = (),
) -> float:
    """What the network would take with the groups of ``cut`` narrower, in ms.

    ``programs`` are the network's own, ``widths`` its groups' widths. Call sites that read or
    compute a cut group's channels change; the others cost what they cost now, and those in
    ``blocks`` whose groups keep no channel nothing.
    """
    shares = {group: width / widths[group] for group, width in cut.items()}
    cut_groups = [group for group in groups if group.group_id in cut]
    computed = {module for group in cut_groups for module in group.producers}
    read = {module for group in cut_groups for module in group.consumers}
    outputs = {m: kept(shares, widths, [g for g in groups if m in g.producers]) for m in computed}
    seen = as_read(shares, widths, blocks)
    inputs = {m: kept(seen, widths, [g for g in groups if m in g.consumers]) for m in read}
    out = (block for block in blocks if all(cut.get(group) == 0 for group in block.groups))
    gone = {layer for block in out for layer in block.layers}
    shapes = shapes_of(programs.table)
    costs = {entry.task_id: entry.cost_ms for entry in programs.latencies}
    total, before, after, weights = 0.0, [], [], []
    for subgraph in programs.table.subgraphs:
        cost, module = costs.get(subgraph.task_id, 0.0), subgraph.module or ""
        shape = shapes[subgraph.task_id]
        if module in gone:
            continue
        if module not in outputs and module not in inputs:
            total += cost
            continue
        before.append(shape)
        after.append(shape.scaled(outputs.get(module, 1.0), inputs.get(module, 1.0)))
        weights.append(cost)
    if before:
        ratios = np.exp(model.log_ms(after) - model.log_ms(before))
        total += float(np.dot(weights, ratios))
    return total
