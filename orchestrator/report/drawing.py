"""What all pictures share: colours, an empty panel, and how it becomes SVG.

matplotlib's object interface alone, so that nothing global is touched and no window is opened.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 8.6


@dataclass(frozen=True)
class Palette:
    """The colours of one scheme."""

    ink: str
    muted: str
    grid: str
    accent: str
    before: str
    rejected: str
    other: str


LIGHT = Palette("#1c2733", "#64707d", "#e3e7eb", "#0f7a6c", "#b9c4ce", "#c2562d", "#5a6fb0")
DARK = Palette("#e4e9ee", "#98a4b0", "#2d3742", "#3fc1ab", "#4d5b69", "#ef8a60", "#93a6e6")


def percent_tick(value: float, _position: float) -> str:
    """A tick's label."""
    return f"{value:.1%}"


def new_figure(palette: Palette, height_in: float) -> tuple[Figure, Axes]:
    """A figure of one panel, ``height_in`` inches high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    dress(figure, axes, palette)
    return figure, axes


def dress(figure: Figure, axes: Axes, palette: Palette) -> None:
    """Colours and lines of a panel."""
    figure.patch.set_alpha(0.0)
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)
    axes.grid(color=palette.grid, linewidth=0.8)
    axes.tick_params(colors=palette.muted, labelsize=8.5, length=0)
    axes.xaxis.label.set_color(palette.muted)
    axes.yaxis.label.set_color(palette.muted)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.grid)


def name_rows(axes: Axes, names: Sequence[str], palette: Palette) -> None:
    """A row for each name, the first at the top."""
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", labelcolor=palette.ink)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def legend(figure: Figure, axes: Axes, palette: Palette) -> None:
    """What the marks mean, above the panel."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(len(labels), 3),
        frameon=False,
        fontsize=8.5,
        labelcolor=palette.ink,
        handletextpad=0.5,
        columnspacing=1.6,
    )


def svg_of(figure: Figure) -> str:
    """The figure as SVG text; equal figures give equal text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "cprune"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
