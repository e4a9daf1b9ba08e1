"""The table: tasks <-> subgraphs <-> programs, and the measurements behind them."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Literal

from pydantic import Field, model_validator

from schemas.base import Schema

TaskKind = Literal["conv2d", "depthwise", "dense", "other"]

SHARED_BATCH = "shared"
"""Batch of the programs that a run took over from other runs."""
WRONG_RESULT = "wrong result"
"""What the error of a program begins with that ran and computed something else."""


class Subgraph(Schema):
    """One fused call site of the compiled network."""

    index: int = Field(ge=0, description="Position among the call sites of the network.")
    task_id: str
    module: str | None = Field(
        description="Torch module whose weight feeds it; None without a weight."
    )
    parameter: str | None = Field(description="Name of the parameter that feeds it.")
    output_shape: tuple[int, ...]


class Task(Schema):
    """The workload that several identical subgraphs share, on one target."""

    task_id: str = Field(description="sha256 of canonical text, shapes and target.")
    name: str
    kind: TaskKind
    workload: str = Field(description="sha256 of the workload (TVM JSON).")
    macs: int = Field(ge=0)


class Measurement(Schema):
    """Latencies, and what is needed to believe them."""

    run_ms: tuple[float, ...] = Field(
        min_length=1,
        description="One mean for each repeat; of a network that was compared "
        "several times, one median for each time.",
    )
    device: str = Field(description="Which physical device answered.")
    device_kind: Literal["local", "tracker", "replay", "simulated"]
    threads: int = Field(ge=1, description="Threads the device's runtime reported.")
    temperature_c: float | None = None
    canary_ratio: float | None = Field(
        default=None,
        description="Time of a fixed small workload over its first time in the session.",
    )
    measured_at: float = Field(description="Seconds since the epoch.")

    @property
    def simulated(self) -> bool:
        """Whether no device took these latencies in this run: they prove nothing."""
        return self.device_kind in ("replay", "simulated")

    @property
    def latency_ms(self) -> float:
        """The median of the repeats, in milliseconds."""
        ordered = sorted(self.run_ms)
        middle = len(ordered) // 2
        if len(ordered) % 2:
            return ordered[middle]
        return (ordered[middle - 1] + ordered[middle]) / 2


class Program(Schema):
    """One schedule trace for a task with its measured latency on one device model."""

    program_id: str = Field(description="sha256 of task and trace.")
    task_id: str
    device_model: str = Field(
        description="With ', cold' behind it where weights were out of the caches: programs that "
        "were timed in two ways are not compared."
    )
    trace: str = Field(description="The schedule's trace as TVM JSON.")
    source: Literal["search", "transplant"]
    channel_tiles: tuple[int, ...] = Field(
        default=(),
        description="Factors of the output-channel loop, outermost first, the last one the vector "
        "factor; empty when the program does not tile it.",
    )
    reduction_tiles: tuple[int, ...] = Field(
        default=(), description="Factors of the input-channel (reduction) loop, outermost first."
    )
    parent: str | None = Field(default=None, description="Program a transplant was taken from.")
    batch: str = Field(
        default="",
        description="The unit of work and the round in it that measured the program, or shared.",
    )
    position: int = Field(
        default=0,
        ge=0,
        description="Place in the batch as it was proposed; devices answer in any order.",
    )
    lineage_trials: int = Field(
        default=0, ge=0, description="Of a transplant: trials behind the program it was taken from."
    )
    beside_ms: float | None = Field(
        default=None,
        gt=0.0,
        description="Of a transplant: latency of the program it was taken from, measured beside "
        "it.",
    )
    inside_ms: float | None = Field(
        default=None,
        gt=0.0,
        description="Of a finalist: one call inside the network of this run that it was tuned for.",
    )
    measurement: Measurement | None = Field(description="None when it did not build or run.")
    error: str = Field(default="", description="Why there is no measurement.")
    max_abs_error: float | None = Field(
        default=None,
        description="Largest difference from the untuned program's output, where checked.",
    )

    @property
    def is_shared(self) -> bool:
        """Whether another run measured it."""
        return self.batch == SHARED_BATCH

    @property
    def is_condemned(self) -> bool:
        """Whether it ran and computed something else than its task."""
        return self.measurement is None and self.error.startswith(WRONG_RESULT)

    @property
    def latency_ms(self) -> float:
        """Measured latency; infinite for a program that did not run."""
        return self.measurement.latency_ms if self.measurement else float("inf")


class Sample(Schema):
    """What a cost model learns from one measured program, whatever network it is of."""

    task_id: str
    program_id: str
    device_model: str = Field(description="As the program has it.")
    target: str = Field(description="sha256 of the target that the program was compiled for.")
    latency_ms: float = Field(gt=0.0)
    features: bytes = Field(description="As the cost model packs them.")


class KnownTask(Schema):
    """What one call of a task takes on one device model, whatever network it is of."""

    task_id: str
    kind: TaskKind
    macs: int = Field(ge=0)
    output_shape: tuple[int, ...] = Field(description="Channels last.")
    latency_ms: float = Field(gt=0.0, description="Of its fastest program by itself.")


class NetworkTable(Schema):
    """The tasks and subgraphs of one network structure on one target."""

    tasks: tuple[Task, ...]
    subgraphs: tuple[Subgraph, ...]

    def weight(self, task_id: str) -> int:
        """How many subgraphs share the task."""
        return sum(subgraph.task_id == task_id for subgraph in self.subgraphs)

    def modules(self, task_id: str) -> tuple[str, ...]:
        """Torch modules behind the task, in network order."""
        return tuple(
            subgraph.module
            for subgraph in self.subgraphs
            if subgraph.task_id == task_id and subgraph.module is not None
        )


class Comparison(Schema):
    """Paired latencies of two networks, interleaved on one physical device."""

    reference_ms: tuple[float, ...] = Field(min_length=1)
    candidate_ms: tuple[float, ...] = Field(min_length=1)
    reference: Measurement
    candidate: Measurement
    occasions: tuple[int, ...] = Field(
        default=(),
        description="Pairs of each occasion on which both networks were loaded anew, in order; "
        "none: all are of one.",
    )

    @model_validator(mode="after")
    def _every_pair_has_its_occasion(self) -> Comparison:
        if self.occasions and sum(self.occasions) != len(self.reference_ms):
            raise ValueError("the pairs of the occasions are not all pairs")
        return self

    @property
    def log_ratios(self) -> tuple[tuple[float, ...], ...]:
        """ln(candidate / reference) of the pairs of each occasion."""
        pairs = zip(self.reference_ms, self.candidate_ms, strict=True)
        logs = [math.log(candidate / reference) for reference, candidate in pairs]
        ends = list(accumulate(self.occasions or (len(logs),)))
        return tuple(
            tuple(logs[begin:end]) for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        )
