"""The report's pictures: each a function from the record to an SVG text, in light or dark colours.

matplotlib's object interface alone, so that nothing global is touched and no window is opened.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.report.drawing import (
    WIDTH_IN,
    Palette,
    dress,
    legend,
    name_rows,
    new_figure,
    percent_tick,
    svg_of,
)
from orchestrator.summary import device_s_of, prepared_of, trained_by, tuned_by, work_of
from schemas.base import content_key
from schemas.record import RunRecord, StepRecord, TargetRecord
from schemas.summary import NetworkSummary, TargetSummary, TaskSummary
from schemas.work import ExportWork, FineTuneWork, PrepareWork, UniformWork

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 28
"""Rows of a bar picture; the rest is summed up in a last one."""


@dataclass(frozen=True)
class Point:
    """A judged candidate in the plane of latency and accuracy."""

    latency_ms: float
    accuracy: float | None
    accepted: bool
    estimated: bool


# ------------------------------------------------------------------- accuracy and latency


def points_of(steps: Sequence[StepRecord]) -> list[Point]:
    """Where the candidates lie.

    A compared one lies at its parent's latency times the ratio of the two, which were measured in
    turns: so what drifts on the device between two steps does not show. One that was never measured
    as a whole network lies at its programs' sum times what the compared ones took beyond theirs;
    without any such one, at the sum itself.
    """
    compared = _compared_ms(steps)
    factors = [
        compared[step.candidate.candidate_id] / step.screened_ms
        for step in steps
        if step.comparison and step.screened_ms
    ]
    factor = statistics.median(factors) if factors else 1.0
    points = []
    for step in steps:
        if step.comparison:
            latency, estimated = compared[step.candidate.candidate_id], False
        elif step.screened_ms:
            latency, estimated = step.screened_ms * factor, True
        else:
            continue
        points.append(Point(latency, step.val_accuracy, step.accepted, estimated))
    return points


def _compared_ms(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Candidate -> latency in ms, from the first comparison's parent on, ratio by ratio."""
    parents: dict[str, float] = {}
    found: dict[str, float] = {}
    for step in steps:
        if step.comparison is None:
            continue
        pairs = zip(step.comparison.candidate_ms, step.comparison.reference_ms, strict=True)
        ratio = statistics.median(after / before for after, before in pairs)
        parent = content_key(step.candidate.parent.structure)
        latency = parents.setdefault(parent, step.comparison.reference.latency_ms) * ratio
        found[step.candidate.candidate_id] = latency
        if step.accepted:
            parents[content_key(step.candidate.structure)] = latency
    return found


def accuracy_latency(
    record: RunRecord, target: TargetRecord, summary: TargetSummary, palette: Palette
) -> str | None:
    """Accuracy against latency; None without a single point."""
    points = points_of(target.steps)
    judged = [point for point in points if point.accuracy is not None]
    named: list[tuple[str, NetworkSummary | None, str, str]] = [
        ("uniformly narrower", summary.uniform, "s", palette.other),
        ("dense (baseline)", summary.baseline, "D", palette.ink),
        ("final", summary.final, "*", palette.accent),
    ]
    if not judged and not any(network for _, network, _, _ in named):
        return None
    figure, axes = new_figure(palette, height_in=4.3)
    path = [(p.latency_ms, p.accuracy) for p in judged if p.accepted and p.accuracy is not None]
    start = _start(record, target)
    if start:
        path.insert(0, start)
    if len(path) > 1:
        xs, ys = zip(*path, strict=True)
        axes.plot(xs, ys, color=palette.accent, linewidth=1.6, alpha=0.75, zorder=2)
    accepted = path[1:] if start else path
    _dots(axes, accepted, palette.accent, "o", "accepted step", 42)
    if start:
        axes.scatter(*start, s=42, facecolor="none", edgecolor=palette.accent, zorder=3)
    refused = [(p.latency_ms, p.accuracy) for p in judged if not p.accepted]
    _dots(axes, refused, palette.rejected, "x", "rejected after training", 34)
    for label, network, marker, colour in named:
        if network is None:
            continue
        size = 210 if marker == "*" else 60
        at = (network.latency_ms, network.val_accuracy)
        axes.scatter(*at, s=size, marker=marker, color=colour, label=label, zorder=5)
    if summary.accuracy_floor is not None:
        axes.axhline(
            summary.accuracy_floor,
            color=palette.rejected,
            linewidth=1.1,
            linestyle=(0, (5, 3)),
            label=f"accuracy floor {summary.accuracy_floor:.2%}",
        )
    axes.margins(0.09, 0.14)
    untrained = [p.latency_ms for p in points if p.accuracy is None]
    if untrained:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        at_foot = [low + 0.022 * (high - low)] * len(untrained)
        axes.scatter(
            untrained,
            at_foot,
            marker="|",
            s=70,
            color=palette.muted,
            label="screened only (latency estimated)",
        )
    axes.set_xlabel("latency of the whole network (ms)")
    axes.set_ylabel("validation accuracy")
    axes.yaxis.set_major_formatter(percent_tick)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    legend(figure, axes, palette)
    return svg_of(figure)


def _start(record: RunRecord, target: TargetRecord) -> tuple[float, float] | None:
    """The dense network as the first candidate was compared with it."""
    prepared = prepared_of(record)
    for step in target.steps:
        if step.comparison and not step.candidate.parent.structure.widths:
            accuracy = step.candidate.parent.val_accuracy
            return step.comparison.reference.latency_ms, (
                prepared.dense.val_accuracy if prepared else accuracy
            )
    return None


def _dots(
    axes: Axes, at: Sequence[tuple[Any, Any]], colour: str, marker: str, label: str, size: float
) -> None:
    if at:
        xs, ys = zip(*at, strict=True)
        axes.scatter(xs, ys, s=size, marker=marker, color=colour, label=label, zorder=4)


# --------------------------------------------------------------------------- tasks, widths


def task_times(summary: TargetSummary) -> list[tuple[str, float, float | None]]:
    """(name, ms before, ms after) for every task of the dense network, slowest first.

    A task's time after is that of the same modules, in whatever tasks they ended up; tasks without
    weights are put together. The time after is None while there is no pruned network.
    """
    after: dict[str, float] = {}
    for task in summary.tasks_after:
        for module in task.modules:
            after[module] = after.get(module, 0.0) + task.cost_ms
    rows: list[tuple[str, float, float | None]] = []
    pruned = bool(summary.tasks_after)
    for task in summary.tasks_before:
        if task.modules:
            now = sum(after.get(module, 0.0) for module in task.modules)
            rows.append((_task_label(task), _total(task), now if pruned else None))
    bare = sum(_total(task) for task in summary.tasks_before if not task.modules)
    bare_now = sum(_total(task) for task in summary.tasks_after if not task.modules)
    rows.sort(key=lambda row: -row[1])
    if bare or bare_now:
        rows.append(("without weights", bare, bare_now if pruned else None))
    return rows


def time_per_task(summary: TargetSummary, palette: Palette) -> str | None:
    """Horizontal bars: where the time goes, before and after."""
    rows = task_times(summary)
    if not rows:
        return None
    if len(rows) > MAX_ROWS:
        rest = rows[MAX_ROWS - 1 :]
        now = None if rest[0][2] is None else sum(row[2] or 0.0 for row in rest)
        rows = [*rows[: MAX_ROWS - 1], (f"{len(rest)} more", sum(r[1] for r in rest), now)]
    figure, axes = new_figure(palette, height_in=0.9 + 0.36 * len(rows))
    at = range(len(rows))
    longest = max(max(row[1], row[2] or 0.0) for row in rows)
    axes.barh(
        [i - 0.19 for i in at],
        [row[1] for row in rows],
        0.34,
        color=palette.before,
        label="dense",
    )
    if rows[0][2] is not None:
        axes.barh(
            [i + 0.19 for i in at],
            [row[2] or 0.0 for row in rows],
            0.34,
            color=palette.accent,
            label="pruned",
        )
    for index, (_, before, after) in enumerate(rows):
        text = f"{before:.3g}" if after is None else f"{before:.3g} → {after:.3g}"
        axes.text(
            max(before, after or 0.0) + 0.012 * longest,
            index,
            text,
            va="center",
            fontsize=8,
            color=palette.muted,
        )
    name_rows(axes, [row[0] for row in rows], palette)
    axes.set_xlim(0, longest * 1.17)
    axes.set_xlabel("time in the task's programs, all its call sites together (ms)")
    legend(figure, axes, palette)
    return svg_of(figure)


def widths(summary: TargetSummary, palette: Palette) -> str | None:
    """Horizontal bars: channels of every group before, and the share that is kept."""
    rows = list(summary.widths.items())
    if not rows:
        return None
    figure, axes = new_figure(palette, height_in=0.9 + 0.27 * len(rows))
    at = range(len(rows))
    widest = max(dense for _, (dense, _) in rows)
    axes.barh(at, [dense for _, (dense, _) in rows], 0.58, color=palette.before, label="dense")
    axes.barh(at, [kept for _, (_, kept) in rows], 0.58, color=palette.accent, label="kept")
    for index, (_, (dense, kept)) in enumerate(rows):
        text = f"{dense}" if dense == kept else f"{dense} → {kept}"
        axes.text(dense + 0.012 * widest, index, text, va="center", fontsize=8, color=palette.muted)
    name_rows(axes, [_shorten(name) for name, _ in rows], palette)
    axes.set_xlim(0, widest * 1.14)
    axes.set_xlabel("channels")
    legend(figure, axes, palette)
    return svg_of(figure)


# ------------------------------------------------------------------------------- the cost


def cost(record: RunRecord, target: TargetRecord, palette: Palette) -> str | None:
    """Four small bar pictures: seconds by phase, programs, device and training seconds."""
    programs: dict[str, float] = {}
    device: dict[str, float] = {}
    training: dict[str, float] = {}
    for item in work_of(record, target):
        tuned = tuned_by(item)
        if tuned:
            _add(programs, item.work.kind, tuned.measured_programs)
        _add(device, item.work.kind, device_s_of(item))
        network = trained_by(item)
        if network:
            _add(training, _training_kind(record, item.work), network.train_s)
    panels = [
        (_phases_title(record), dict(record.phases_s), palette.before),
        ("programs measured", programs, palette.accent),
        ("device time (s)", device, palette.accent),
        ("training (s, all workers together)", training, palette.other),
    ]
    panels = [(title, {k: v for k, v in rows.items() if v > 0}, c) for title, rows, c in panels]
    if not any(rows for _, rows, _ in panels):
        return None
    left = max(3, len(panels[0][1]))
    right = [max(2, len(rows)) for _, rows, _ in panels[1:]]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.3 * max(left, sum(right) + 4)), layout="constrained")
    outer = figure.add_gridspec(1, 2, wspace=0.08)
    inner = outer[1].subgridspec(3, 1, height_ratios=[n + 0.6 for n in right], hspace=0.12)
    places = [outer[0], inner[0], inner[1], inner[2]]
    for (title, rows, colour), place in zip(panels, places, strict=True):
        axes = figure.add_subplot(place)
        dress(figure, axes, palette)
        axes.set_title(title, loc="left", fontsize=9, color=palette.ink)
        ordered = list(rows.items()) or [("none", 0.0)]
        axes.barh(range(len(ordered)), [v for _, v in ordered], 0.56, color=colour)
        longest = max([v for _, v in ordered] + [1e-9])
        for index, (_, value) in enumerate(ordered):
            axes.text(
                value + 0.015 * longest,
                index,
                f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}",
                va="center",
                fontsize=8,
                color=palette.muted,
            )
        name_rows(axes, [name.replace("_", " ") for name, _ in ordered], palette)
        axes.set_xlim(0, longest * 1.2)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    return svg_of(figure)


def _phases_title(record: RunRecord) -> str:
    """Targets are worked on side by side: their seconds together are no wall-clock time."""
    if len(record.config.targets) > 1:
        return "seconds by phase, summed over all targets"
    return "wall-clock by phase (s)"


def _training_kind(record: RunRecord, work: object) -> str:
    if isinstance(work, PrepareWork):
        return "dense network"
    if isinstance(work, UniformWork):
        return "uniform network"
    if isinstance(work, FineTuneWork) and work.structure == work.parent.structure:
        of_steps = (step.candidate for target in record.targets for step in target.steps)
        further = [
            ((item.trained_from or item.parent).weights, item.structure) for item in of_steps
        ]
        if (work.parent.weights, work.structure) not in further:
            return "long fine-tuning"
    return "candidates"


def _add(counts: dict[str, float], kind: str, amount: float) -> None:
    name = "export and check" if kind == ExportWork.model_fields["kind"].default else kind
    counts[name] = counts.get(name, 0.0) + amount


# ------------------------------------------------------------------------------- drawing


def _total(task: TaskSummary) -> float:
    return task.cost_ms * task.subgraphs


def _task_label(task: TaskSummary) -> str:
    first = task.modules[0]
    more = len(task.modules) - 1
    return _shorten(first) + (f" + {more}" if more else "")


def _shorten(name: str, limit: int = 30) -> str:
    return name if len(name) <= limit else f"{name[:10]}…{name[-(limit - 11) :]}"
