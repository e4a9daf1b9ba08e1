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
        "mobilenet_v2_cifar), torchvision:NAME, or module:function that builds your own.",
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="Keyword arguments of the network's constructor."
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
        "that returns the three splits.",
    )
    root: str | None = Field(default=None, description="Folder of cifar10 or imagefolder data.")
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Keyword arguments of module:function, or of drawn: train, "
        "validation and test (numbers of images) and noise (0 to 1).",
    )
    image_size: int = Field(
        default=32, ge=1, description="Height and width of the network's input in pixels."
    )
    validation_fraction: float = Field(
        default=0.2,
        gt=0.0,
        lt=1.0,
        description="Share of the training images held out to steer the search, where the data "
        "set has no validation split of its own.",
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0.0,
        lt=1.0,
        description="Share of the training images held out until the end, where the data set has "
        "no test split of its own.",
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

    batch_size: int = Field(
        default=1, ge=1, description="Images in one inference of the deployed network."
    )
    dtype: Literal["float32"] = Field(default="float32", description="Element type of the network.")


class TrainConfig(Section):
    """How networks are trained from scratch; fine-tuning takes over what is of every training."""

    epochs: int = Field(
        default=8,
        ge=0,
        description="Epochs of what is trained from scratch: the dense network without a "
        "checkpoint, and the network of compare_uniform.",
    )
    batch_size: int = Field(default=32, ge=1, description="Images in a step of any training.")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="Optimizer of every training."
    )
    learning_rate: float = Field(
        default=0.1, gt=0.0, description="Largest learning rate of a training from scratch."
    )
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="Momentum of sgd.")
    weight_decay: float = Field(default=5e-4, ge=0.0, description="Weight decay of every training.")
    schedule: Literal["cosine", "onecycle", "constant"] = Field(
        default="onecycle", description="Course of the learning rate in a training from scratch."
    )
    augmentation: Literal["none", "shift", "crop_flip", "resized_crop"] = Field(
        default="shift",
        description="How images are varied in every training. shift: by up to 2 pixels. "
        "crop_flip: by up to an eighth of the height, and half of them mirrored. resized_crop: a "
        "random part of 8 to 100 % of the area, resized, and half of them mirrored, as "
        "torchvision's.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Label smoothing of every training."
    )
    timeout_s: float = Field(
        default=86_400.0, gt=0.0, description="Longest time that one training may take."
    )


class FineTuneConfig(Section):
    """Training after pruning; the rest of the recipe is that of ``train``."""

    schedule: Literal["cosine", "onecycle", "constant"] = Field(
        default="cosine", description="Course of the learning rate in fine-tuning."
    )
    short_epochs: int = Field(
        default=2, ge=0, description="Epochs before a candidate for single tasks is judged."
    )
    short_learning_rate: float = Field(
        default=0.02, gt=0.0, description="Learning rate that these epochs begin with."
    )
    long_epochs: int = Field(
        default=8,
        ge=0,
        description="Epochs of a long training: of the final network, of each cut of all of it, "
        "and of cuts for single tasks once the whole cannot be cut any more.",
    )
    long_learning_rate: float = Field(
        default=0.02, gt=0.0, description="Learning rate that a long training begins with."
    )
    further_learning_rate: float = Field(
        default=0.005,
        gt=0.0,
        description="Learning rate that a long training begins with where the widths stay.",
    )
    most_pruned_at_once: float = Field(
        default=0.45,
        gt=0.0,
        le=1.0,
        description="Largest share of the multiplications that one cut takes away before it is "
        "trained; deeper cuts are made and trained in steps.",
    )
    distillation: float = Field(
        default=0.9,
        ge=0.0,
        le=1.0,
        description="Share of the loss that compares with the dense network's outputs; the rest "
        "compares with the labels.",
    )
    distillation_temperature: float = Field(
        default=4.0, gt=0.0, description="Both networks' outputs are divided by it for that."
    )
    max_parallel: int = Field(
        default=2, ge=1, description="Candidates trained at once; they may share a GPU."
    )


PolicyName = Literal["parallel", "paper", "predictor", "uniform", "global", "netadapt", "original"]
LeftOut = Literal["structure", "transplants", "associated", "blocks"]


class PruneConfig(Section):
    """What may be pruned, how filters are chosen, and when a step is taken."""

    policy: PolicyName = Field(
        default="parallel",
        description="How the search decides. parallel: several tasks and widths, and cuts of the "
        "whole network, at once. paper: CPrune's order, one step at a time. predictor: parallel, "
        "with more widths ranked by a latency model before any is measured. For comparisons: "
        "uniform, global, netadapt, original.",
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
        default=0.1,
        gt=0.0,
        le=1.0,
        description="Least share of a group's channels that is kept. A whole block may still be "
        "taken out.",
    )
    tasks_per_round: int = Field(
        default=3, ge=1, description="So many of the slowest tasks are proposed from in a round."
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
        default=0,
        ge=0,
        description="Set by comparisons, for uniform and global: least number of candidates "
        "trained before the end.",
    )
    least_train_s: float = Field(
        default=0.0, ge=0.0, description="Set by comparisons: the same in seconds of training."
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
        default=16, ge=1, description="Trials for each task of the dense network."
    )
    retune_trials_per_task: int = Field(
        default=8,
        ge=0,
        description="Trials for each changed task of an accepted step, and for each task of a "
        "candidate whose transplant gains too little.",
    )
    final_trials_per_task: int = Field(
        default=32,
        ge=1,
        description="Trials in total for each task of the final network and of the dense one. "
        "Transplants, which the search leaves behind, do not count.",
    )
    min_trials_per_task: int = Field(
        default=16,
        ge=1,
        description="Trials that each task gets of those above; the rest goes where it pays most.",
    )
    max_s: float | None = Field(
        default=None,
        gt=0.0,
        description="Longest search for programs of one network; of several networks, the sum.",
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
    population_size: int = Field(
        default=64, ge=1, description="Programs in one generation of the evolutionary search."
    )
    generations: int = Field(
        default=1, ge=1, description="Generations of the evolutionary search for one batch."
    )
    finalists: int = Field(
        default=3,
        ge=1,
        description="Of each task's fastest programs, those that are tried inside the network, "
        "where the device can watch one.",
    )
    transplant_variants: int = Field(
        default=6, ge=1, description="Variants of one transplanted program that are measured."
    )
    build_timeout_s: float = Field(default=5.0, gt=0.0, description="Longest build of one program.")
    model_build_timeout_s: float = Field(
        default=300.0, gt=0.0, description="Longest build of one whole network."
    )


class MeasureConfig(Section):
    """How latencies are taken on a device."""

    program_repeats: int = Field(
        default=3, ge=1, description="Timings of one program in a measurement."
    )
    program_min_repeat_ms: int = Field(
        default=10, ge=0, description="Least length of one timing of a program."
    )
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
    model_min_repeat_ms: int = Field(
        default=30, ge=0, description="Least length of one timing of a whole network."
    )
    cache_mb: float | None = Field(
        default=None,
        ge=0.0,
        description="The device's last-level cache. Where the dense network's weights take more, "
        "programs are timed with their weights out of the caches, as they will find them; 0: "
        "always. Default: this machine's for a local device, 4 for others.",
    )
    session_timeout_s: int = Field(default=60, ge=1, description="Longest session on a device.")
    device_wait_s: float = Field(
        default=60.0, gt=0.0, description="Longest wait for a free device."
    )
    answer_timeout_s: float = Field(
        default=30.0, gt=0.0, description="Longest silence of a device before it counts as dead."
    )


class BudgetConfig(Section):
    """When to stop although steps still pay."""

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
    """Measured programs that runs share."""

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

    address: str | None = Field(default=None, description="HOST:PORT of the head of a Ray cluster.")
    worker_cpus: int | None = Field(
        default=None, ge=1, description="CPUs that Ray may use where it is started on this machine."
    )


class RunConfig(Section):
    """A whole run."""

    run: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][\w.-]*$",
        description="Name of the run; its folder is output/NAME.",
    )
    output: str = Field(default="runs", description="Folder that holds the run folders.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of all random numbers of the run.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    train: TrainConfig = TrainConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    metric: str = Field(
        default="top1",
        description="What accuracy means: top1, top5, or module:function of logits and labels "
        "that returns a number, larger for better.",
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
        description="For comparison, a network with this share of every width is trained from "
        "scratch and tuned alike: the row uniform of the report.",
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
