"""The picture of the transplants: how their latency compares with a fresh search's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_COLOURS = {"keeps": "#0f7a6c", "breaks": "#c2562d", "input": "#5a6fb0"}
_LABELS = {
    "keeps": "output channels, the vector factor divides them",
    "breaks": "output channels, it does not",
    "input": "input channels",
}


class _Row(Protocol):
    side: str
    preserves: bool

    @property
    def ratio(self) -> float: ...


def write_picture(rows: Sequence[_Row], path: Path) -> None:
    """All rows by kind, sorted by their ratio, as an SVG file."""
    kinds = {
        "keeps": [r.ratio for r in rows if r.side == "output" and r.preserves],
        "breaks": [r.ratio for r in rows if r.side == "output" and not r.preserves],
        "input": [r.ratio for r in rows if r.side == "input"],
    }
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    start = 0
    for kind, ratios in kinds.items():
        places = range(start, start + len(ratios))
        axes.plot(places, sorted(ratios), "o", color=_COLOURS[kind], label=_LABELS[kind])
        start += len(ratios) + 2
    axes.axhline(1.0, color="#64707d", linewidth=1.0)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks([])
    axes.set_ylabel("latency: transplant / fresh search")
    axes.set_title("Each mark is a layer at a narrower width, sorted", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8.5)
    axes.grid(axis="y", color="#e3e7eb")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "transplant", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
