"""The summary of a run: what ``cprune report --json`` prints and ``summary.json`` holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Schema

SpeedupVerdict = Literal["faster", "slower", "not_distinguishable", "too_noisy", "dense"]


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
    program_ms: float = Field(description="One call of the program by itself.")
    in_model_ms: float | None = Field(
        description="One call inside the network; None where that was not watched."
    )
    share: float = Field(description="Of the sum over all tasks, inside the network if known.")
    channel_tiles: list[int]
    trials: int

    @property
    def cost_ms(self) -> float:
        """Of one call: inside the network, or of the program by itself where that is unknown."""
        return self.program_ms if self.in_model_ms is None else self.in_model_ms


class LibraryCheck(Schema):
    """The exported library against torch on the test split's first images."""

    images: int
    max_abs_difference: float
    max_abs_output: float


class PredictorSummary(Schema):
    """How far the latency model's predictions lay from what was then measured."""

    candidates: int
    median_error: float = Field(
        description="Median of |predicted / measured - 1|, of the candidate's share of its "
        "parent's latency."
    )
    rank_correlation: float | None = Field(
        description="Spearman's, of the same shares; None for fewer than three candidates."
    )


class TargetSummary(Schema):
    """The result on one target."""

    target: str
    device_model: str | None
    simulated: bool = Field(
        description="True when latencies came from a recording or from simulated devices."
    )
    accuracy_floor: float | None
    latency_target_ms: float | None = Field(default=None, description="Where one was asked for.")
    meets_latency_target: bool | None = Field(
        default=None, description="Of the final network as exported; None before, and without one."
    )
    baseline: NetworkSummary | None
    final: NetworkSummary | None
    excess_test_loss: float | None = Field(
        default=None,
        description="Accuracy that the final network loses on the test split beyond what the floor "
        "allows, where chance does not explain it (one-sided, 95 %). None where it does, before "
        "the export, and for a metric of one's own.",
    )
    test_images: int | None = Field(default=None, description="Of the test split, once read.")
    trainings: int = Field(
        default=0, description="Networks trained; the validation images chose among them."
    )
    uniform: NetworkSummary | None = Field(
        description="The uniformly narrower network, where asked for."
    )
    uniform_speedup: float | None = Field(
        description="Baseline / uniform latency, of the medians of two comparisons: approximate."
    )
    speedup: float | None = Field(
        description="Baseline / final latency: the median over several comparisons of the median "
        "of each one's pairs, which is not quite the ratio of the two medians. None before the "
        "export, and where no step was accepted: the final network is then the dense one, and a "
        "ratio of the two would be noise."
    )
    speedup_low: float | None = Field(
        description="Lower bound of the speed-up at the run's confidence; None for too few "
        "comparisons."
    )
    speedup_comparisons: int = Field(description="Comparisons behind the speed-up.")
    speedup_verdict: SpeedupVerdict | None = Field(
        description="faster, slower: beyond the noise at the run's confidence. "
        "not_distinguishable: the bound does not clear 1. too_noisy: the ratio of the medians "
        "differs from the median of the ratios by more than their interquartile range. dense: no "
        "step was accepted, the result is the dense network. None before the export."
    )
    steps: list[StepSummary]
    widths: dict[str, tuple[int, int]] = Field(description="Group -> dense and final width.")
    tasks_before: list[TaskSummary]
    tasks_after: list[TaskSummary] = Field(
        description="Of the final network, or of what the accepted steps led to; empty where that "
        "is the dense network."
    )
    outside_tasks_before: float | None = Field(
        description="Share of the dense network's latency that lies in none of its tasks."
    )
    outside_tasks_after: float | None = Field(description="The same of the final network.")
    measured_programs: int = Field(
        description="By this run; those it took over from other runs do not count."
    )
    measured_models: int
    failed_programs: int
    device_s: float
    device_slowed: float | None = Field(
        default=None,
        description="The most that a fixed workload took after a comparison of two networks, over "
        "what it took at the beginning of the session: well above 1 where the device is throttled "
        "or shared. None where the device has no such workload.",
    )
    train_s: float
    predictor: PredictorSummary | None = Field(
        default=None,
        description="Where the policy has a latency model: each candidate was "
        "predicted before it was measured.",
    )
    library_check: LibraryCheck | None
    artifacts: dict[str, str]
    notes: list[str] = Field(default=[], description="What was not handed over, and why.")
    stopped_by: str = Field(description="Why the search ended.")


class WrongProgram(Schema):
    """A program that was rejected because it computes something else than its task."""

    task: str
    device_model: str
    error: str = Field(description="By how much its output differs.")
    trace: str = Field(description="The schedule trace, as TVM writes it.")


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
    synthetic_data: bool = Field(
        default=False, description="True when accuracies are on drawn images, not on real ones."
    )
    phases_s: dict[str, float] = Field(
        description="State -> seconds spent in it, summed over the targets: several are worked on "
        "at the same time, and their sum then exceeds wall_s."
    )
    wrong_programs: list[WrongProgram] = Field(
        default_factory=list, description="Rejected by this run; none of them is in any network."
    )
    targets: list[TargetSummary]
