"""Parts of pages, and figures in words: one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources

from orchestrator.report import drawing

Draw = Callable[[drawing.Palette], str | None]


def document(kind: str, title: str, heading: str, body: Iterable[str | None]) -> str:
    """A whole page. ``kind``: the line above the heading; all three are plain text."""
    style = resources.files("orchestrator.report").joinpath("style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>\n"
        f'<header><p class="kind">{escape(kind)}</p><h1>{escape(heading)}</h1></header>\n'
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def section(title: str, draw: Draw, caption: str) -> str | None:
    light = draw(drawing.LIGHT)
    if light is None:
        return None
    dark = draw(drawing.DARK) or light
    return (
        f'<h3>{escape(title)}</h3><figure><div class="scroll"><picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{data(dark)}">'
        f'<img alt="{escape(title)}" src="{data(light)}"></picture></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def data(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def table(headings: Sequence[str], rows: Iterable[str]) -> str:
    """A table; a heading that begins with a star is that of a column of numbers."""
    head = "".join(
        f'<th class="n">{escape(text[1:])}</th>'
        if text.startswith("*")
        else f"<th>{escape(text)}</th>"
        for text in headings
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def percent(fraction: float) -> str:
    return f"{fraction * 100:.1f}\u00a0%"


def milliseconds(value: float) -> str:
    """Three significant digits, trailing zeros kept, so that columns compare."""
    return f"{value:#.3g}".removesuffix(".")


def share(part: int, whole: int) -> str:
    return f"{part / whole * 100:.0f}\u00a0%" if whole else ""


def big(number: int) -> str:
    """Three digits; rounded first, so that 999,999 is 1 M and not 1000 k."""
    if number >= 1000:
        number = int(float(f"{number:.3g}"))
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}\u00a0{unit}"
    return str(number)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
