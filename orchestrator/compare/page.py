"""The page of a comparison, its table for the console, and the plot of all methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from orchestrator.compare.methods import ABLATIONS, BASELINES, DENSE, OURS
from orchestrator.console import table_text
from orchestrator.report import drawing
from orchestrator.report.html import (
    big,
    document,
    duration,
    milliseconds,
    percent,
    section,
    table,
)
from orchestrator.wording import count
from schemas.comparison import AtOurTime, Bound, MethodRow, MethodTable

HEADINGS = (
    "method",
    "*latency, ms",
    "*images/s",
    "*speed-up",
    "*validation",
    "*test",
    "*MACs",
    "*parameters",
    "*candidates",
    "*programs",
    "*search",
    "*device",
    "*training",
)


_CONSOLE = (0, 1, 3, 4, 5, 6, 8, 9, 10)  # the columns that a terminal has room for


def render(tables: Sequence[MethodTable]) -> str:
    """The whole page as HTML text."""
    first = tables[0]
    kind = f"cprune · comparison · {first.network} on {first.data}"
    body: list[str | None] = []
    for found in tables:
        if len(tables) > 1:
            body.append(f"<h2>{escape(found.target)}: {escape(headline(found))}</h2>")
        body += _table(found)
    several = f"{len(tables)} targets"
    heading = headline(first) if len(tables) == 1 else several
    return document(kind, f"Comparison: {first.network}", heading, body)


def headline(found: MethodTable) -> str:
    """What came out, in one line of plain text."""
    if found.speedup_over_dense is None:
        return "Methods compared"
    told = f"{_faster(found.speedup_over_dense, found.speedup_bound)} than the dense network"
    if found.best_baseline is None or found.best_baseline_ratio is None:
        return told
    how = _faster(found.best_baseline_ratio, found.best_baseline_bound)
    return f"{told}, {how} than {_best(found.best_baseline, found.best_of)}"


def _faster(ratio: float, bound: Bound | None) -> str:
    """How much faster or slower, at least or at most where it is a bound."""
    is_faster = ratio >= 1
    told = f"{ratio:.2f}x faster" if is_faster else f"{1 / ratio:.2f}x slower"
    if bound == "open":
        return f"{told} (limits ended both sides)"
    if bound is None:
        return told
    return f"{'at least' if (bound == 'lower') == is_faster else 'at most'} {told}"


def _best(best: str, run: Sequence[str]) -> str:
    """The best other method, and of which where some were not run."""
    others = [method for method in run if method != best]
    if not others:
        return f"the one other method run ({best})"
    if len(run) == len(BASELINES):
        return f"the best other method ({best})"
    also = ", ".join(others)
    return f"the best of the {len(run)} other methods run ({best}; the rest: {also})"


def remarks(found: MethodTable) -> Iterator[str]:
    """What has to be known of the figures, in plain text."""
    if found.simulated:
        yield "SIMULATED: latencies were answered from a recording or by simulated devices."
    if found.synthetic_data:
        yield "SYNTHETIC data: accuracies are on drawn images, not on real ones."
    if found.quick:
        yield "QUICK form: few images, epochs, rounds and trials; its figures prove little."
    missed = [row.method for row in found.rows if not row.meets_floor]
    if missed:
        yield f"Below the floor of {found.accuracy_floor:.2%}: {', '.join(missed)}."
    fallen = [
        f"{row.method} by {100 * row.excess_test_loss:.2f}"
        for row in found.rows
        if row.excess_test_loss is not None
    ]
    if fallen:
        yield (
            "On the test images below what the floor allows, by more points than chance explains: "
            f"{', '.join(fallen)}. The validation images chose among many trained networks; with "
            "more of them the floor holds better."
        )
    for method, reason in found.not_run.items():
        yield f"No row for {method}, which could not run: {reason}."
    capped = [row.method for row in found.rows if row.capped]
    if capped:
        yield (
            f"Stopped by a limit before its own end: {', '.join(capped)}. What it would have "
            "reached is not known: its speed-up is a lower bound, and by how much another method "
            "is faster than it an upper one."
        )
    if found.measured_programs_ratio is not None and found.search_time_ratio is not None:
        yield (
            "For each cut decided, with what it was trained further, between the dense and the "
            f"final tuning, ours measured {found.measured_programs_ratio:.3f} of the original's "
            f"programs in {found.search_time_ratio:.2f} of its time{_caps(found.cost_ratio_caps)}."
        )
    if found.original_at_our_time is not None:
        yield _at_our_time(found.original_at_our_time)


def _caps(caps: Mapping[str, int]) -> str:
    """Where limits ended the searches whose cost is compared."""
    if not caps:
        return ""
    told = " and ".join(f"{count(n, 'candidate')} of {method}" for method, n in caps.items())
    return f", at a cap of {told}: averages up to there, no bounds"


def _at_our_time(at: AtOurTime) -> str:
    """Where the original stood after our search time, or when it was stopped before."""
    stood = (
        f"decided on {count(at.decided, 'candidate')}, accepted {at.accepted} and reached "
        f"{at.speedup:.2f}x over dense by its comparisons"
    )
    if at.stopped_after_s is None:
        return f"After our search time the original had {stood}."
    return (
        f"The original had searched for {duration(at.stopped_after_s)}, less than ours, when a "
        f"limit stopped it. It had {stood}; where it would have stood after our time is not known."
    )


def cells(row: MethodRow) -> list[str]:
    """A row of the table under ``HEADINGS``, as plain text."""
    test = "" if row.test_accuracy is None else percent(row.test_accuracy)
    if row.test_top5 is not None:
        test += f" ({percent(row.test_top5)} top-5)"
    return [
        row.method + ("" if row.meets_floor else " (below the floor)"),
        milliseconds(row.latency_ms),
        f"{row.fps:,.0f}",
        f"{'>= ' if row.speedup_bound == 'lower' else ''}{row.speedup:.2f}x",
        percent(row.val_accuracy),
        test,
        big(row.macs),
        big(row.params),
        _candidates(row),
        f"{row.measured_programs:,}",
        duration(row.search_s),
        duration(row.device_s),
        duration(row.train_s),
    ]


def _candidates(row: MethodRow) -> str:
    """Those decided upon, with the cuts among them where they are fewer."""
    cuts = f" ({count(row.cuts, 'cut')})" if row.cuts != row.decided else ""
    return f"{row.decided}{cuts}{', capped' if row.capped else ''}"


def as_text(tables: Sequence[MethodTable]) -> str:
    """All columns of all tables as plain text, each with its headline and remarks."""
    headings = [heading.removeprefix("*") for heading in HEADINGS]
    return "\n".join(
        f"{found.target}: {headline(found)}\n\n"
        + table_text(headings, [cells(row) for row in found.rows])
        + "".join(f"\n{remark}\n" for remark in remarks(found))
        for found in tables
    )


def console_table(found: MethodTable) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for a terminal."""
    headings, *rows = (
        [text[column].removeprefix("*") for column in _CONSOLE]
        for text in (HEADINGS, *map(cells, found.rows))
    )
    return headings, rows


def _table(found: MethodTable) -> list[str | None]:
    rows = []
    for row in found.rows:
        strong = ' class="strong"' if row.method == OURS else ""
        name, *numbers = cells(row)
        inner = "".join(f'<td class="n">{escape(text)}</td>' for text in numbers)
        rows.append(f"<tr{strong}><td>{escape(name)}</td>{inner}</tr>")
    lead = f"Accuracy floor: {percent(found.accuracy_floor)} on validation images."
    if found.device_model:
        lead += f" Device: {found.device_model}."
    return [
        f'<p class="lead">{escape(lead)}</p>',
        *(f'<p class="banner">{escape(text)}</p>' for text in remarks(found)),
        table(HEADINGS, rows),
        '<p class="muted">Every method started from the same dense weights, with the same '
        "fine-tuning recipe and floor, on the same device. Latencies are of the whole exported "
        "networks, measured in turns with the dense one after all runs had ended. Candidates: "
        "decided upon, a further training of the same cut too. Programs: measured by the whole "
        "run. Search: between the dense and the final tuning; device and training: of the whole "
        "run.</p>",
        section(
            "Accuracy against latency",
            lambda palette: picture(found, palette),
            "Final networks. The line is the accuracy floor.",
        ),
    ]


def picture(found: MethodTable, palette: drawing.Palette) -> str | None:
    """Validation accuracy against latency, a mark for each method."""
    figure, axes = drawing.new_figure(palette, 3.6)
    for row in found.rows:
        colour = palette.accent if row.method == OURS else palette.other
        if row.method == DENSE:
            colour = palette.before
        elif row.method in ABLATIONS:
            colour = palette.muted
        axes.plot(row.latency_ms, row.val_accuracy, "o", color=colour, markersize=8)
        axes.annotate(
            row.method,
            (row.latency_ms, row.val_accuracy),
            xytext=(7, 4),
            textcoords="offset points",
            fontsize=8.5,
            color=palette.ink,
        )
    axes.axhline(found.accuracy_floor, color=palette.rejected, linewidth=1.0, linestyle="--")
    axes.set_xlabel("latency of the whole network, ms")
    axes.set_ylabel("validation accuracy")
    axes.yaxis.set_major_formatter(drawing.percent_tick)
    axes.set_xlim(left=0.0)
    axes.margins(x=0.18, y=0.18)
    return drawing.svg_of(figure)
