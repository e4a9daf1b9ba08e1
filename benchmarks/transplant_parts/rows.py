"""The rows of the transplants' table: kept in a file, and summed up."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transplant_parts.layers import Layer


@dataclass(frozen=True)
class Row:
    """One narrower layer, for one seed. Latencies in ms, costs in s."""

    seed: int
    layer: Layer
    side: str
    width: int
    preserves: bool
    first_ms: float
    best_ms: float
    fresh_ms: float
    first_s: float
    best_s: float
    fresh_s: float
    trials: int
    """Of the fresh search."""

    @property
    def ratio(self) -> float:
        """The best variant's latency over the fresh search's."""
        return self.best_ms / self.fresh_ms


def kept_rows(path: Path | None, trials: int) -> list[Row]:
    """The rows of earlier starts; none without a file.

    Raises ``SystemExit`` where their searches were others than those that would be added.
    """
    if path is None or not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if any(row.get("trials") != trials for row in rows):
        raise SystemExit(
            f"{path}: has rows that are not of fresh searches of {trials} trials; name another file"
        )
    return [Row(**{**row, "layer": Layer(**row["layer"])}) for row in rows]


def keep_row(row: Row, path: Path | None) -> None:
    """Append a row; none without a file."""
    if path is not None:
        with path.open("a") as file:
            file.write(f"{json.dumps(asdict(row))}\n")


def summary(rows: Sequence[Row], quick: bool) -> dict[str, object]:
    """Over the structure-preserving widths; of several seeds, the median of each pair first."""
    keeping = [row for row in rows if row.preserves]
    pairs: dict[tuple[Layer, str, float], list[float]] = {}
    for row in keeping:
        share = row.width / (row.layer.outputs if row.side == "output" else row.layer.inputs)
        pairs.setdefault((row.layer, row.side, share), []).append(row.ratio)
    ratios = [statistics.median(values) for values in pairs.values()]
    medians = {
        f"{side}, {'keeps' if preserves else 'breaks'}": _median(
            [row.ratio for row in rows if (row.side, row.preserves) == (side, preserves)]
        )
        for side in ("output", "input")
        for preserves in (True, False)
    }
    return {
        "quick": quick,
        "pairs": len(ratios),
        "median_latency_ratio": _median(ratios),
        "max_latency_ratio": max(ratios, default=math.nan),
        "median_cost_ratio": _median([row.best_s / row.fresh_s for row in keeping]),
        "first_variant_cost_ratio": _median([row.first_s / row.fresh_s for row in keeping]),
        "slower_by_more_than_20_percent": sum(ratio > 1.2 for ratio in ratios),
        "other_widths": sum(not row.preserves for row in rows),
        "median_latency_ratios": medians,
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 4) if values else math.nan
