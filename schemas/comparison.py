"""What a comparison of methods comes to: what ``comparison.json`` holds."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Schema


class AtOurTime(Schema):
    """Where the original algorithm stood after as many seconds of search as ours took."""

    decided: int = Field(description="Candidates decided upon by then.")
    accepted: int
    speedup: float = Field(description="Over dense, by the comparisons of the steps taken.")


class MethodRow(Schema):
    """One method's network, and what finding it took."""

    method: str
    run: str = Field(description="Its run folder, relative to the comparison's.")
    latency_ms: float = Field(description="Of the final network, measured beside the dense one.")
    fps: float
    speedup: float = Field(description="Dense / its latency, median of the pairs' ratios.")
    speedup_low: float | None = Field(description="Lower bound at the run's confidence.")
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
        description="Of a task of the final network, those its programs descend from included."
    )
    most_trials: int
    decided: int = Field(description="Candidates that were decided upon.")
    trained: int = Field(description="Candidates that were trained.")
    measured_programs: int = Field(description="By its run, final tuning included.")
    search_programs: int = Field(description="Measured between dense and final tuning.")
    search_s: float = Field(description="Between dense and final tuning.")
    wall_s: float
    device_s: float
    train_s: float
    stopped_by: str
    capped: bool = Field(description="Whether a limit ended it before its own end.")
    ours_is_faster_by: float | None = Field(
        default=None, description="Its latency / ours, median of the pairs' ratios."
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
    best_baseline: str | None = Field(description="The fastest other method that met the floor.")
    best_baseline_ratio: float | None = Field(description="Its latency / ours.")
    measured_programs_ratio: float | None = Field(
        description="Ours / the original's programs measured in the search, for each candidate."
    )
    search_time_ratio: float | None = Field(
        description="Ours / the original's search time, for each candidate."
    )
    original_at_our_time: AtOurTime | None
    rows: list[MethodRow]
