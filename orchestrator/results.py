"""What came out of a run, in lines and a table for the console."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.held_out import doubt_of
from orchestrator.speedup import in_words
from schemas.summary import NetworkSummary, Summary, TargetSummary

HEADINGS = ("target", "network", "ms", "speed-up", "validation", "test", "M MACs", "k params")
NOTE = "speed-up: median of paired ratios, so not quite the ratio of the medians in ms"
APPROXIMATE = "~: of medians alone"


def lines(summary: Summary) -> Iterator[str]:
    """What stands above the table."""
    yield f"{summary.run}: {summary.state} after {summary.wall_s:.0f} s"
    if summary.error:
        yield f"error: {summary.error}"
    if summary.synthetic_data:
        yield "SYNTHETIC data: accuracies are on drawn images, not on real ones"
    for target in summary.targets:
        if target.simulated:
            yield (
                f"{target.target}: SIMULATED, latencies were answered from a recording or by "
                "simulated devices"
            )
        accepted = sum(step.accepted for step in target.steps)
        floor = f", floor {target.accuracy_floor:.2%}" if target.accuracy_floor is not None else ""
        yield f"{target.target}: {accepted} accepted of {len(target.steps)} decided{floor}"
        told = in_words(target.speedup_verdict, target.speedup, target.speedup_comparisons)
        if told:
            yield f"{target.target}: {told}"
        doubt = doubt_of(target)
        if doubt:
            yield f"{target.target}: {doubt}"
        if target.meets_latency_target is not None:
            reached = "reached" if target.meets_latency_target else "NOT reached"
            yield f"{target.target}: latency target of {target.latency_target_ms:g} ms {reached}"


def rows(summary: Summary) -> list[list[str]]:
    """The table's rows: every network that was exported."""
    return [row for target in summary.targets for row in _rows(target)]


def note(summary: Summary) -> str:
    """What has to be known of the table's speed-ups; empty where it shows none."""
    pruned = any(target.speedup is not None for target in summary.targets)
    uniform = any(target.uniform_speedup is not None for target in summary.targets)
    if pruned:
        return f"{NOTE}; {APPROXIMATE}" if uniform else NOTE
    return f"speed-up {APPROXIMATE}" if uniform else ""


def _rows(target: TargetSummary) -> Iterator[list[str]]:
    pruned = "dense (final)" if target.speedup_verdict == "dense" else "pruned"
    named: list[tuple[str, NetworkSummary | None, str]] = [
        ("dense", target.baseline, ""),
        ("uniform", target.uniform, _ratio(target.uniform_speedup, "~")),
        (pruned, target.final, _ratio(target.speedup)),
    ]
    for name, network, speedup in named:
        if network is not None:
            yield [
                target.target,
                name,
                f"{network.latency_ms:#.3g}",
                speedup,
                f"{network.val_accuracy:.2%}",
                "" if network.test_accuracy is None else f"{network.test_accuracy:.2%}",
                f"{network.macs / 1e6:.2f}",
                f"{network.params / 1e3:.1f}",
            ]


def _ratio(ratio: float | None, mark: str = "") -> str:
    return "" if ratio is None else f"{mark}{ratio:.2f}x"
