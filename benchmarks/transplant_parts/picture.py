"""The picture of the transplants: how their latency compares with a fresh search's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_MARKS = {
    ("output", True): ("#0f7a6c", "o", "output channels, the vector factor divides them"),
    ("output", False): ("#c2562d", "o", "output channels, it does not"),
    ("input", True): ("#0f7a6c", "^", "input channels, the innermost factor divides them"),
    ("input", False): ("#c2562d", "^", "input channels, it does not"),
}


class _Row(Protocol):
    side: str
    preserves: bool

    @property
    def ratio(self) -> float: ...


def write_picture(rows: Sequence[_Row], path: Path) -> None:
    """All rows by kind, sorted by their ratio, as an SVG file."""
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    start = 0
    for kind, (colour, mark, label) in _MARKS.items():
        ratios = sorted(row.ratio for row in rows if (row.side, row.preserves) == kind)
        places = range(start, start + len(ratios))
        axes.plot(places, ratios, mark, color=colour, markersize=5.0, label=label)
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
