"""What a comparison of methods comes to: what ``comparison.json`` holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Schema

Bound = Literal["lower", "upper", "open"]
"""What a ratio is, compared with what it would be had every search come to its own end. ``open``:
either may be, since limits ended both sides. None in its place: no limit ended any."""


class AtOurTime(Schema):
    """Where the original algorithm stood after as many seconds of search as ours took; or when a
    limit stopped it, where that was earlier."""

    decided: int = Field(description="Candidates decided upon by then.")
    accepted: int
    speedup: float = Field(description="Over dense, by the comparisons of the steps taken.")
    stopped_after_s: float | None = Field(
        default=None,
        description="Seconds it had searched when a limit stopped it before our time was over: "
        "where it would have stood then is not known. None where it went on for as long, or ended "
        "by itself.",
    )


class MethodRow(Schema):
    """One method's network, and what finding it took."""

    method: str
    run: str = Field(description="Its run folder, relative to the comparison's.")
    latency_ms: float = Field(description="Of the final network, measured beside the dense one.")
    fps: float
    speedup: float = Field(description="Dense / its latency, median of the pairs' ratios.")
    speedup_low: float | None = Field(description="Lower bound at the run's confidence.")
    speedup_bound: Bound | None = Field(
        default=None, description="lower where a limit ended it: it might have become faster."
    )
    val_accuracy: float
    test_accuracy: float | None
    excess_test_loss: float | None = Field(
        default=None,
        description="Accuracy lost on the test split beyond what the floor allows, where chance "
        "does not explain it.",
    )
    test_top5: float | None = Field(description="Where there are 20 classes or more.")
    macs: int
    params: int
    meets_floor: bool
    least_trials: int = Field(
        description="Of a task of the final network, those its programs descend from included. "
        "The final trials are pooled: each task gets tune.min_trials_per_task, the rest goes where "
        "it pays."
    )
    most_trials: int
    decided: int = Field(description="Candidates that were decided upon.")
    cuts: int = Field(
        description="Cuts among them: further trainings of one are decided upon too, and belong to "
        "it."
    )
    trained: int = Field(description="Candidates that were trained.")
    measured_programs: int = Field(description="By its run, final tuning included.")
    search_programs: int = Field(description="Measured between dense and final tuning.")
    search_s: float = Field(
        description="Between dense and final tuning, with the long training after the last step."
    )
    wall_s: float
    device_s: float
    train_s: float
    stopped_by: str
    capped: bool = Field(description="Whether a limit ended it before its own end.")
    ours_is_faster_by: float | None = Field(
        default=None, description="Its latency / ours, median of the pairs' ratios."
    )
    ours_is_faster_bound: Bound | None = Field(
        default=None,
        description="upper where a limit ended it, lower where one ended ours, open with both.",
    )
    ours_is_faster_low: float | None = Field(
        default=None, description="Lower bound of that at the run's confidence."
    )


class MethodTable(Schema):
    """A whole comparison on one target."""

    network: str
    data: str
    target: str
    device_model: str | None
    accuracy_floor: float
    quick: bool = Field(description="Whether it is the quick form, which proves little.")
    simulated: bool
    synthetic_data: bool
    speedup_over_dense: float | None = Field(description="Of our network.")
    speedup_bound: Bound | None = Field(description="lower where a limit ended ours.")
    best_baseline: str | None = Field(
        description="Of the methods of best_of that met the floor, the one nearest to ours."
    )
    best_of: list[str] = Field(description="The other methods that have a row, ablations apart.")
    best_baseline_ratio: float | None = Field(description="Its latency / ours.")
    best_baseline_bound: Bound | None = Field(
        description="upper where a limit ended any of best_of, which might have become the best "
        "one; lower where one ended ours, open with both."
    )
    measured_programs_ratio: float | None = Field(
        description="Ours / the original's programs measured in the search, for each cut."
    )
    search_time_ratio: float | None = Field(
        description="Ours / the original's search time, for each cut."
    )
    cost_ratio_caps: dict[str, int] = Field(
        description="Method -> candidates at which a limit ended it, of the two that the ratios "
        "for each cut compare: these are averages up to there, no bounds."
    )
    original_at_our_time: AtOurTime | None
    not_run: dict[str, str] = Field(
        default_factory=dict, description="Methods that could not run and have no row, and why."
    )
    rows: list[MethodRow]
