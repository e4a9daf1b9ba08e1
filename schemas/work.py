"""Units of work and their outcomes: what the orchestrator asks of the workers.

A unit of work is pure data with a key made of its content. Its outcome is stored in the ledger
under that key, so that the same work is never done twice, whoever asks for it and however often the
run is started again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import Schema, Timed, content_key
from schemas.network import Block, ChannelGroup, NetworkInfo, Sensitivity, Structure, Trained
from schemas.table import Comparison, KnownTask, Measurement, NetworkTable


class Candidate(Schema):
    """A parent network plus new widths for the groups behind one task."""

    candidate_id: str = Field(
        description="sha256 (first 16 digits) of the weights its training begins with, and widths."
    )
    task_id: str
    task_name: str
    parent: Trained
    structure: Structure = Field(description="The whole structure with the new widths.")
    groups: tuple[str, ...]
    widths_before: tuple[int, ...]
    widths_after: tuple[int, ...]
    long_training: bool = Field(
        default=False, description="Whether it is trained as long as the final network is."
    )
    trained_from: Trained | None = Field(
        default=None,
        description="The network of this structure whose training goes on; None to begin with the "
        "parent's weights.",
    )
    trained_further: int = Field(
        default=0, description="Number of times that its training has gone on, with this one."
    )
    predicted_ms: float | None = Field(
        default=None, description="Sum of its programs by a latency model, before any was measured."
    )
    kept_share: float | None = Field(
        default=None,
        description="Of a cut of the whole network: what it is expected to leave of the latency.",
    )
    expected_loss: float | None = Field(
        default=None, description="Rise of the loss that the groups' sensitivities let expect."
    )


class _Work(Schema):
    @property
    def key(self) -> str:
        """Content key: equal work has an equal key."""
        return content_key(self)


class PrepareWork(_Work):
    """Load or train the dense network, find its channel groups."""

    kind: Literal["prepare"] = "prepare"


class UniformWork(_Work):
    """Train the network narrowed to a share of every width from scratch."""

    kind: Literal["uniform"] = "uniform"
    fraction: float


class TuneWork(_Work):
    """Search programs for the tasks of a network until each has this many trials.

    ``trials`` overrides ``trials_per_task`` for single tasks, by torch module name. Only tasks that
    have a module in ``modules``, and are among ``tasks``, are searched (all, where these are None).
    """

    kind: Literal["tune"] = "tune"
    target: str
    network: Trained | None = Field(description="None: the tasks alone, the network is not built.")
    fraction: float | None = Field(default=None, description="Of the uniform network's widths.")
    trials_per_task: int = Field(ge=0)
    trials: dict[str, int] = Field(default_factory=dict)
    added_trials: bool = Field(
        default=False, description="Count trials from what is there already, not from zero."
    )
    counts_shared: bool = Field(
        default=True, description="Whether what other runs searched counts as trials had."
    )
    modules: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None


ScreeningKind = Literal["transplant", "search", "search_all"]


class ScreenWork(_Work, Timed):
    """Transplant every program a candidate affects and measure the variants on the device."""

    left_out_of_keys: ClassVar[tuple[str, ...]] = ("costs_ms",)

    kind: Literal["screen"] = "screen"
    target: str
    candidate: Candidate
    by: ScreeningKind = Field(
        default="transplant",
        description="transplant: a short search where those are poor. search: the changed tasks "
        "are searched instead, search_all: all tasks once more.",
    )
    trials_per_task: int = Field(default=0, ge=0, description="Of a search.")
    costs_ms: dict[str, float] = Field(
        default_factory=dict,
        description="What one call of each of the parent's tasks costs the parent. Not in the key.",
    )


class FineTuneWork(_Work):
    """Prune the parent's weights to the candidate's structure and train."""

    kind: Literal["fine_tune"] = "fine_tune"
    parent: Trained
    structure: Structure
    epochs: int = Field(ge=0)
    learning_rate: float = Field(gt=0.0)
    most_pruned_at_once: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Share of the multiplications; a deeper cut is made in steps, each trained for "
        "these epochs.",
    )
    teacher: Trained | None = Field(
        default=None, description="The network it learns from besides the labels, if any."
    )


class CompareWork(_Work):
    """Measure two whole compiled networks, paired and interleaved, on one device."""

    kind: Literal["compare"] = "compare"
    target: str
    reference: Trained
    candidate: Trained
    label: str = Field(default="", description="Which comparison of the run this is.")


class ExportWork(_Work):
    """Write, load and check the deployable artefacts; use the test split, once."""

    kind: Literal["export"] = "export"
    target: str
    dense: Trained
    final: Trained
    uniform: Trained | None = None
    fraction: float | None = None


Work = Annotated[
    PrepareWork | UniformWork | TuneWork | ScreenWork | FineTuneWork | CompareWork | ExportWork,
    Field(discriminator="kind"),
]


class Prepared(Schema):
    """Outcome of PrepareWork."""

    kind: Literal["prepared"] = "prepared"
    dense: Trained
    groups: tuple[ChannelGroup, ...]
    blocks: tuple[Block, ...] = Field(
        default=(),
        description="Residual blocks and plain layers, for the policies that take them out.",
    )
    ladder: tuple[Structure, ...] = Field(
        default=(),
        description="For the policy global: ever narrower structures, by the importance of "
        "channels over the whole network.",
    )
    sensitivities: tuple[Sensitivity, ...] = Field(
        default=(), description="Of the prunable groups, for the policies that use them."
    )

    def groups_in(self, structure: Structure) -> tuple[ChannelGroup, ...]:
        """The groups that a network of this structure has, without the layers of the blocks that
        were taken out. What read a plain layer reads what that did."""
        gone = [block for block in self.blocks if structure.gone.intersection(block.groups)]
        if not gone:
            return self.groups
        absent = {layer for block in gone for layer in block.layers}
        plain = {block.block_id for block in gone if block.source}
        readers = {group.group_id: group.consumers for group in self.groups}

        def reading(consumers: tuple[str, ...]) -> Iterator[str]:
            for name in consumers:
                if name in plain:
                    yield from reading(readers[name])
                elif name not in absent:
                    yield name

        left = (
            group.model_copy(
                update={
                    "producers": tuple(n for n in group.producers if n not in absent),
                    "consumers": tuple(dict.fromkeys(reading(group.consumers))),
                }
            )
            for group in self.groups
        )
        return tuple(group for group in left if group.producers)

    def blocks_in(self, structure: Structure) -> tuple[Block, ...]:
        """The blocks that a network of this structure has, with the sources they have there."""
        gone = structure.gone
        sources = {block.block_id: block.source for block in self.blocks if block.source}

        def source_of(block: Block) -> str:
            source = block.source
            while source in gone and source in sources:
                source = sources[source]
            return source

        return tuple(
            block.model_copy(update={"source": source_of(block)})
            for block in self.blocks
            if not gone.intersection(block.groups)
        )


class UniformTrained(Schema):
    """Outcome of UniformWork. Its structure is not one of the dense network's groups."""

    kind: Literal["uniform_trained"] = "uniform_trained"
    network: Trained


class TaskLatency(Schema):
    """The fastest program of one task of a network, and what finding it took."""

    task_id: str
    program_id: str | None = Field(description="None when no program of the task ran.")
    latency_ms: float = Field(ge=0.0, description="Of one call of the program by itself.")
    in_model_ms: float | None = Field(
        default=None,
        ge=0.0,
        description="Of one call inside the whole network; None where that was not watched.",
    )
    channel_tiles: tuple[int, ...] = ()
    reduction_tiles: tuple[int, ...] = ()
    vector_factors: tuple[int, ...] = Field(
        default=(),
        description="Vector factors of the programs nearly as fast as the fastest, its own first.",
    )
    trials: int = Field(ge=0, description="Programs measured for this very task.")
    lineage_trials: int = Field(
        ge=0, description="With those of the tasks its programs were transplanted from."
    )

    @property
    def cost_ms(self) -> float:
        """What one call costs the network, as far as it is known."""
        return self.latency_ms if self.in_model_ms is None else self.in_model_ms


class Tuned(Schema):
    """Outcome of TuneWork."""

    kind: Literal["tuned"] = "tuned"
    device_model: str
    table: NetworkTable
    latencies: tuple[TaskLatency, ...]
    measured_programs: int = Field(ge=0, description="Programs measured by this work.")
    failed_programs: int = Field(ge=0, description="Programs that did not build or run.")
    device_s: float = Field(ge=0.0)
    wall_s: float = Field(ge=0.0)
    simulated: bool = Field(
        default=False, description="Whether any latency came from no device of this run."
    )
    model_ms: float | None = Field(
        default=None,
        ge=0.0,
        description="Of the whole network, measured with the latencies of the calls inside it.",
    )
    earlier: tuple[KnownTask, ...] = Field(
        default=(),
        description="Of the dense network: tasks of others that earlier runs on the same device "
        "model measured, for the policies that learn from them.",
    )

    def latency(self, task_id: str) -> TaskLatency:
        """The task's entry; KeyError when the network has no such task."""
        for entry in self.latencies:
            if entry.task_id == task_id:
                return entry
        raise KeyError(task_id)

    @property
    def sum_ms(self) -> float:
        """Cost of a call times subgraphs, over all tasks."""
        return sum(entry.cost_ms * self.table.weight(entry.task_id) for entry in self.latencies)


class Screened(Schema):
    """Outcome of ScreenWork."""

    kind: Literal["screened"] = "screened"
    candidate_id: str
    tuned: Tuned | None = Field(description="The candidate's table; None when it was refused.")
    refused: str = Field(default="", description="Why there is no transplant.")
    parent_ms: float = Field(ge=0.0, description="Sum of the parent's programs.")
    candidate_ms: float = Field(ge=0.0, description="Sum of the candidate's programs.")
    slower: tuple[str, ...] = Field(
        default=(),
        description="Torch modules whose call takes longer than before, or has no program.",
    )


class FineTuned(Schema):
    """Outcome of FineTuneWork."""

    kind: Literal["fine_tuned"] = "fine_tuned"
    network: Trained
    sensitivities: tuple[Sensitivity, ...] = Field(
        default=(), description="Of the prunable groups, for the policies that use them."
    )
    diverged: str = Field(
        default="",
        description="When the loss ceased to be finite; the network is that of the best epoch "
        "before.",
    )


class Compared(Schema):
    """Outcome of CompareWork."""

    kind: Literal["compared"] = "compared"
    comparison: Comparison | None
    failed: str = Field(
        default="", description="Why the candidate could not be built or run, where it could not."
    )
    device_s: float = Field(ge=0.0)


class ExportedNetwork(Schema):
    """One network as it is deployed: measured, and judged on the test split."""

    latency: Measurement
    val_accuracy: float
    test_accuracy: float
    test_top5: float | None = Field(default=None, description="Where there are 20 classes or more.")
    info: NetworkInfo


class Exported(Schema):
    """Outcome of ExportWork."""

    kind: Literal["exported"] = "exported"
    dense: ExportedNetwork
    final: ExportedNetwork
    uniform: ExportedNetwork | None = None
    dense_tuned: Tuned
    final_tuned: Tuned
    speedup_ratios: tuple[float, ...] = Field(
        description="dense / final latency: the median of the pairs, one for each comparison."
    )
    max_abs_difference: float = Field(ge=0.0, description="Library's logits against torch's.")
    max_abs_output: float = Field(ge=0.0, description="Largest absolute logit, for scale.")
    checked_images: int = Field(ge=1)
    test_images: int = Field(ge=1, description="Of the test split, which the accuracies are of.")
    artifacts: dict[str, str] = Field(description="What -> path relative to the run folder.")
    notes: tuple[str, ...] = Field(default=(), description="What was left out, and why.")
    device_s: float = Field(ge=0.0)


Outcome = Annotated[
    Prepared | UniformTrained | Tuned | Screened | FineTuned | Compared | Exported,
    Field(discriminator="kind"),
]
