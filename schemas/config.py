"""The configuration of a run: everything a user may say, with its default and its unit."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from schemas.section import Section
from schemas.target import TargetConfig

_REFERENCE = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class ModelConfig(Section):
    """Which network to prune."""

    name: str = Field(
        default="small_resnet",
        description="A network of this project (small_resnet, resnet18_cifar, vgg16_cifar, "
        "mobilenet_v2_cifar), torchvision:NAME, or module:function.",
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="Keyword arguments handed to the model's constructor."
    )
    checkpoint: str | None = Field(
        default=None,
        description="Weights to start from: .safetensors, or a .pt or .pth state dictionary. "
        "Without one the dense network is trained.",
    )


class DataConfig(Section):
    """Which images to train, validate and test on. Nothing is downloaded."""

    name: str = Field(
        default="digits",
        description="digits, drawn (synthetic images), cifar10, imagefolder, or module:function "
        "returning the three splits.",
    )
    root: str | None = Field(default=None, description="Folder of cifar10 or imagefolder data.")
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Keyword arguments handed to module:function, or to drawn: train, "
        "validation and test (numbers of images) and noise (0 to 1).",
    )
    image_size: int = Field(default=32, ge=1, description="Height and width in pixels.")
    validation_fraction: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="Share of the images held out to steer the search."
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0.0,
        lt=1.0,
        description="Share held out to the end, where the data set has no test split of its own.",
    )

    @property
    def synthetic(self) -> bool:
        """Whether the images are drawn by this project, and show nothing that was ever seen."""
        return self.name == "drawn"

    @property
    def title(self) -> str:
        """The name for people, who are always told that a data set is synthetic."""
        return f"{self.name} (synthetic)" if self.synthetic else self.name

    @model_validator(mode="after")
    def _needs_root(self) -> DataConfig:
        if self.name in ("cifar10", "imagefolder") and self.root is None:
            raise ValueError(
                f"data.root is required for {self.name}: name the folder that holds the images"
            )
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                "data.validation_fraction and data.test_fraction leave no training images"
            )
        return self


class InputConfig(Section):
    """The input the deployed network takes."""

    batch_size: int = Field(default=1, ge=1, description="Images in one inference.")
    dtype: Literal["float32"] = Field(default="float32", description="Element type of the network.")


class TrainConfig(Section):
    """How the dense network is trained, and the recipe that fine-tuning shortens."""

    epochs: int = Field(default=8, ge=0, description="Of the dense network without a checkpoint.")
    batch_size: int = Field(default=32, ge=1, description="Images in a step of any training.")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0.0, description="Largest, of these epochs.")
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="Used by sgd.")
    weight_decay: float = Field(default=5e-4, ge=0.0, description="Of all trainings.")
    schedule: Literal["cosine", "onecycle", "constant"] = "onecycle"
    augmentation: Literal["none", "shift", "crop_flip"] = Field(
        default="shift",
        description="none; shift: up to 2 pixels; crop_flip: padded crop and left-right flip.",
    )
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0, description="Of all trainings.")
    timeout_s: float = Field(default=86_400.0, gt=0.0, description="Longest one training may take.")


class FineTuneConfig(Section):
    """Training after pruning; the rest of the recipe is that of ``train``."""

    schedule: Literal["cosine", "onecycle", "constant"] = "cosine"

    short_epochs: int = Field(
        default=2, ge=0, description="Epochs before a candidate for single tasks is judged."
    )
    short_learning_rate: float = Field(default=0.02, gt=0.0, description="What they begin with.")
    long_epochs: int = Field(
        default=8,
        ge=0,
        description="Epochs of a long training: of the final network, of each cut of all of it, "
        "and of cuts for single tasks once the whole cannot be cut any more.",
    )
    long_learning_rate: float = Field(default=0.02, gt=0.0, description="What they begin with.")
    further_learning_rate: float = Field(
        default=0.005, gt=0.0, description="Of a long training that goes on at the same widths."
    )
    most_pruned_at_once: float = Field(
        default=0.45,
        gt=0.0,
        le=1.0,
        description="Share of the multiplications; deeper cuts are made and trained in steps.",
    )
    distillation: float = Field(
        default=0.9,
        ge=0.0,
        le=1.0,
        description="Share of the loss by the dense network's outputs, not by the labels.",
    )
    distillation_temperature: float = Field(
        default=4.0, gt=0.0, description="What both networks' outputs are divided by for it."
    )
    max_parallel: int = Field(default=2, ge=1, description="Trained at once, on shared GPUs too.")


PolicyName = Literal["parallel", "paper", "predictor", "uniform", "global", "netadapt", "original"]
LeftOut = Literal["structure", "transplants", "associated", "blocks"]


class PruneConfig(Section):
    """What may be pruned, how filters are chosen, and when a step is taken."""

    policy: PolicyName = Field(
        default="parallel",
        description="How the search decides. parallel: several tasks and widths at once. paper: "
        "CPrune's order, one step at a time. predictor: parallel, with more widths ranked by a "
        "latency model before any is measured. For comparisons: uniform, global, netadapt, "
        "original.",
    )
    ranking: Literal["l1", "l2", "fpgm"] = Field(
        default="l1", description="Importance of a channel, summed over its whole group."
    )
    accuracy_floor: float | None = Field(
        default=None, ge=0.0, le=1.0, description="Least validation accuracy of the final network."
    )
    max_accuracy_drop: float | None = Field(
        default=None,
        ge=0.0,
        lt=1.0,
        description="Floor given as the largest drop below the dense network's validation "
        "accuracy, in shares of one: 0.01 is a point.",
    )
    latency_target_ms: float | None = Field(
        default=None,
        gt=0.0,
        description="The search ends as soon as the whole network takes no longer on the device.",
    )
    step_accuracy_ratio: float = Field(
        default=0.98,
        gt=0.0,
        le=1.0,
        description="A step keeps at least this share of its parent's validation accuracy.",
    )
    step_latency_ratio: float = Field(
        default=0.99,
        gt=0.0,
        le=1.0,
        description="A step's latency is at most this share of its parent's, by the confidence "
        "bound.",
    )
    confidence: float = Field(
        default=0.97,
        gt=0.5,
        lt=1.0,
        description="Confidence of the latency gate's one-sided bound.",
    )
    min_width_fraction: float = Field(
        default=0.1, gt=0.0, le=1.0, description="Least kept share of a group; its block may go."
    )
    tasks_per_round: int = Field(
        default=3, ge=1, description="Slowest tasks proposed from at once."
    )
    widths_per_task: int = Field(default=2, ge=1, description="Widths proposed for each such task.")
    fine_tuned_per_round: int = Field(
        default=2, ge=1, description="Screened candidates fine-tuned in a round."
    )
    include: list[str] = Field(
        default_factory=lambda: ["*"],
        min_length=1,
        description="Module name patterns (fnmatch): channels are pruned where every layer that "
        "computes them matches one.",
    )
    exclude: list[str] = Field(
        default_factory=list, description="Module name patterns (fnmatch) that are never pruned."
    )
    min_widths: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="Module name pattern (fnmatch) -> channels that are kept at least, beside "
        "min_width_fraction.",
    )

    least_candidates: int = Field(
        default=0, ge=0, description="uniform, global: candidates trained at least before the end."
    )
    least_train_s: float = Field(
        default=0.0, ge=0.0, description="uniform, global: the same, seconds of training."
    )
    without: list[LeftOut] = Field(
        default_factory=list,
        description="For ablations, parts of the method that are left out. structure: widths are "
        "tenths of the dense ones. transplants: candidates' changed tasks are searched anew. "
        "associated: of the groups behind a task only the first is pruned. blocks: none is taken "
        "out whole.",
    )

    @model_validator(mode="after")
    def _one_floor(self) -> PruneConfig:
        if (self.accuracy_floor is None) == (self.max_accuracy_drop is None):
            both = self.accuracy_floor is not None
            raise ValueError(
                "prune.accuracy_floor and prune.max_accuracy_drop are both given; keep one of them"
                if both
                else "a floor is missing: give prune.accuracy_floor or prune.max_accuracy_drop, "
                "for example 'max_accuracy_drop: 0.01'"
            )
        return self


class TuneConfig(Section):
    """The search for programs. Trials are measured programs."""

    trials_per_task: int = Field(
        default=16, ge=1, description="For each task of the dense network."
    )
    retune_trials_per_task: int = Field(
        default=8, ge=0, description="For each changed task of a step, or with a poor transplant."
    )
    final_trials_per_task: int = Field(
        default=32,
        ge=1,
        description="In total, for each task of the final network and the baseline. Transplants, "
        "which the search leaves behind, do not count.",
    )
    min_trials_per_task: int = Field(
        default=16,
        ge=1,
        description="What each task gets of the trials above; the rest goes where it pays most.",
    )
    max_s: float | None = Field(
        default=None, gt=0.0, description="Longest search for one network; of several, the sum."
    )
    max_device_s: float | None = Field(
        default=None, gt=0.0, description="Longest use of the device by one such search."
    )
    round_size: int = Field(
        default=16, ge=1, description="Programs that one round of a task's search proposes."
    )
    rounds_at_once: int | None = Field(
        default=None,
        ge=1,
        description="Tasks searched at once, whose programs are one batch. More keep more cores "
        "and devices busy, and learn later. Default: one for every 4 cores of the machine, 2 to 8.",
    )
    population_size: int = Field(default=64, ge=1, description="Programs of one generation.")
    generations: int = Field(default=1, ge=1, description="Of the search, for one batch.")
    finalists: int = Field(
        default=3,
        ge=1,
        description="Of each task's fastest programs, those that are tried inside the network, "
        "where the device can watch one.",
    )
    transplant_variants: int = Field(
        default=6, ge=1, description="Measured of one transplanted program."
    )
    build_timeout_s: float = Field(default=5.0, gt=0.0, description="For one build alone.")
    model_build_timeout_s: float = Field(
        default=300.0, gt=0.0, description="For the build of one whole network."
    )


class MeasureConfig(Section):
    """How latencies are taken on a device."""

    program_repeats: int = Field(default=3, ge=1, description="Timings of one program.")
    program_min_repeat_ms: int = Field(default=10, ge=0, description="Least length of each.")
    model_repeats: int = Field(
        default=10,
        ge=3,
        description="Pairs taken at least for one comparison. With n pairs the speed-up has a "
        "lower bound where 0.5^n is at most 1 - prune.confidence: from 6 pairs on at 0.97, from 5 "
        "on at 0.95.",
    )
    model_max_repeats: int = Field(
        default=60,
        ge=1,
        description="Pairs taken at most: after model_repeats, more are taken while the device is "
        "too noisy to tell a gain of 5 %, for a third of answer_timeout_s or session_timeout_s.",
    )
    model_min_repeat_ms: int = Field(default=30, ge=0, description="Least length of one timing.")
    cache_mb: float | None = Field(
        default=None,
        ge=0.0,
        description="The device's last-level cache. Where the dense network's weights take more, "
        "programs are timed with their weights out of the caches, as they will find them; 0: "
        "always. Default: this machine's for a local device, 4 for others.",
    )
    session_timeout_s: int = Field(default=60, ge=1, description="Lease of one device session.")
    device_wait_s: float = Field(
        default=60.0, gt=0.0, description="Longest wait for a free device."
    )
    answer_timeout_s: float = Field(
        default=30.0, gt=0.0, description="Longest silence of a device before it counts as dead."
    )


class BudgetConfig(Section):
    """When to stop although steps still pay. May change when a run is resumed."""

    max_rounds: int = Field(default=30, ge=0, description="Rounds of propose and judge.")
    max_hours: float = Field(
        default=240.0, gt=0.0, description="Wall-clock time of the search loop."
    )
    max_steps: int | None = Field(default=None, ge=1, description="Accepted steps.")
    max_device_hours: float | None = Field(
        default=None, gt=0.0, description="Use of the target's devices by the search loop."
    )
    max_gpu_hours: float | None = Field(
        default=None,
        gt=0.0,
        description="Training of candidates, all together; of CPUs where there is no GPU.",
    )
    max_measured_programs: int | None = Field(
        default=None, ge=1, description="Programs measured by the search loop."
    )


class RecordsConfig(Section):
    """Measured programs that runs share. May change when a run is resumed."""

    share: bool = Field(
        default=True, description="Take over programs that other runs measured, and give one's own."
    )
    path: str | None = Field(
        default=None,
        description="File that holds them, on a local disk of the machine that the run is started "
        "on. Default: cprune/records.sqlite in $XDG_CACHE_HOME, or in ~/.cache.",
    )
    max_mb: float = Field(
        default=1000.0,
        gt=0.0,
        description="Megabytes of programs kept; those unused for the longest time go first.",
    )


class ClusterConfig(Section):
    """Where Ray runs. Without an address (and RAY_ADDRESS) it is started on this machine."""

    address: str | None = Field(default=None, description="HOST:PORT of its head.")
    worker_cpus: int | None = Field(
        default=None, ge=1, description="Ray CPUs where Ray is started here."
    )


class RunConfig(Section):
    """A whole run."""

    run: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][\w.-]*$",
        description="Name; the folder is output/NAME.",
    )
    output: str = Field(default="runs", description="Folder that holds the run folders.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of all that is drawn.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    train: TrainConfig = TrainConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    metric: str = Field(
        default="top1", description="top1, top5, or module:function(logits, labels) -> float."
    )
    prune: PruneConfig
    tune: TuneConfig = TuneConfig()
    measure: MeasureConfig = MeasureConfig()
    targets: list[TargetConfig] = Field(default_factory=lambda: [TargetConfig()], min_length=1)
    budget: BudgetConfig = BudgetConfig()
    records: RecordsConfig = RecordsConfig()
    cluster: ClusterConfig = ClusterConfig()
    compare_uniform: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Also train this share of every width from scratch, tuned alike: a row of the "
        "report.",
    )

    @field_validator("metric")
    @classmethod
    def _metric(cls, value: str) -> str:
        if value not in ("top1", "top5") and not _REFERENCE.match(value):
            raise ValueError("metric is top1, top5 or module:function")
        return value

    @model_validator(mode="after")
    def _distinct_targets(self) -> RunConfig:
        names = [target.name for target in self.targets]
        if len(set(names)) != len(names):
            raise ValueError(f"targets[].name must differ: {names}")
        return self
