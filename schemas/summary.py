"""The summary of a run: what ``cprune report --json`` prints and ``summary.json`` holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Schema


class NetworkSummary(Schema):
    """One network as deployed on one device."""

    latency_ms: float = Field(description="Median latency of the whole compiled network.")
    latency_ms_iqr: float = Field(description="Interquartile range of that latency.")
    fps: float = Field(description="Images per second: batch size / latency.")
    val_accuracy: float
    test_accuracy: float | None = Field(
        description="None until the end, when the split is read once."
    )
    macs: int
    params: int


class StepSummary(Schema):
    """One judged candidate."""

    task: str
    groups: list[str]
    widths_before: list[int]
    widths_after: list[int]
    latency_ms: float | None = Field(
        description="Of the whole network; None if it was not measured."
    )
    screened_ms: float | None = Field(description="Sum of the programs' latencies, by transplant.")
    val_accuracy: float | None = Field(description="None when it was not trained.")
    accepted: bool
    reason: str


class TaskSummary(Schema):
    """Where the time goes: one task of a network."""

    task: str
    modules: list[str]
    subgraphs: int
    program_ms: float
    share: float = Field(description="Of the sum over all tasks.")
    channel_tiles: list[int]
    trials: int


class LibraryCheck(Schema):
    """The exported library against torch on the test split's first images."""

    images: int
    max_abs_difference: float
    max_abs_output: float


class TargetSummary(Schema):
    """The result on one target."""

    target: str
    device_model: str | None
    simulated: bool = Field(description="True when latencies came from a recording.")
    accuracy_floor: float | None
    baseline: NetworkSummary | None
    final: NetworkSummary | None
    uniform: NetworkSummary | None = Field(
        description="The uniformly narrower network, where asked for."
    )
    speedup: float | None = Field(
        description="Baseline / final latency, median of the paired ratios."
    )
    speedup_low: float | None = Field(
        description="Lower bound of the speed-up at the run's confidence."
    )
    steps: list[StepSummary]
    widths: dict[str, tuple[int, int]] = Field(description="Group -> dense and final width.")
    tasks_before: list[TaskSummary]
    tasks_after: list[TaskSummary]
    measured_programs: int
    measured_models: int
    failed_programs: int
    device_s: float
    train_s: float
    library_check: LibraryCheck | None
    artifacts: dict[str, str]
    stopped_by: str = Field(description="Why the search ended.")


class Summary(Schema):
    """A run."""

    run: str
    state: Literal["running", "done", "failed", "cancelled"]
    error: str = Field(default="", description="Why it failed.")
    wall_s: float = Field(
        description="Wall-clock seconds the run was worked on, all starts together."
    )
    started: int = Field(description="How often the run was started.")
    versions: dict[str, str]
    phases_s: dict[str, float] = Field(description="State -> wall-clock seconds spent in it.")
    targets: list[TargetSummary]
