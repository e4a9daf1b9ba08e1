"""A small world in which the search can run without a network, a compiler or a device.

A chain of convolutions, each a channel group with a temper of its own: ``stem`` has no transplant,
``fragile`` loses its accuracy, ``flat`` is not faster in the whole network, the others can be
pruned. Every outcome is a function of the work alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from orchestrator.dispatch import Finished
from orchestrator.policies.retry import Failure
from orchestrator.states import Search
from schemas.base import content_key
from schemas.config import RunConfig
from schemas.network import ChannelGroup, NetworkInfo, Structure, Trained
from schemas.table import Comparison, Measurement, NetworkTable, Subgraph, Task
from schemas.work import (
    Compared,
    CompareWork,
    Exported,
    ExportedNetwork,
    ExportWork,
    FineTuned,
    FineTuneWork,
    Outcome,
    Prepared,
    PrepareWork,
    Screened,
    ScreenWork,
    TaskLatency,
    Tuned,
    TuneWork,
    UniformTrained,
    UniformWork,
    Work,
)

LAYERS = {"stem": 32, "fragile": 32, "flat": 48, "deep": 32}
SLOWNESS = {"stem": 1.0, "fragile": 4.0, "flat": 16.0, "deep": 8.0, "head": 1.0}
CLASSES = 10
DENSE_ACCURACY = 0.97


def config(**changes: object) -> RunConfig:
    """A configuration whose search visits every kind of step."""
    values: dict[str, object] = {
        "prune": {"max_accuracy_drop": 0.03, "tasks_per_round": 1, "fine_tuned_per_round": 1},
        "tune": {"trials_per_task": 4, "retune_trials_per_task": 2, "final_trials_per_task": 8},
        "budget": {"max_rounds": 30},
        **changes,
    }
    return RunConfig.model_validate(values)


def groups() -> tuple[ChannelGroup, ...]:
    """One group for each layer, read by the next."""
    names = [*LAYERS, "head"]
    return tuple(
        ChannelGroup(
            group_id=name,
            channels=channels,
            producers=(name,),
            consumers=(names[index + 1],),
        )
        for index, (name, channels) in enumerate(LAYERS.items())
    )


def network(structure: Structure | None = None, accuracy: float = DENSE_ACCURACY) -> Trained:
    """A trained network of this structure."""
    shape = structure or Structure()
    return Trained(
        structure=shape,
        weights=content_key("weights", shape, accuracy),
        val_accuracy=accuracy,
        info=NetworkInfo(macs=1000, params=100, input_shape=(1, 3, 32, 32)),
        train_s=1.0,
        epochs=1,
    )


def search(current: Trained | None = None, **changes: object) -> Search:
    """A search that stands at ``current``, the dense network by default."""
    dense = network()
    values: dict[str, object] = {
        "prepare_key": "prepare",
        "dense": dense,
        "uniform": None,
        "floor": 0.9,
        "current": current or dense,
        "trained_key": "prepare",
        "tuned_key": "tuned",
        **changes,
    }
    return Search.model_validate(values)


def measurement(latency_ms: float) -> Measurement:
    return Measurement(
        run_ms=(latency_ms,), device="fake-0", device_kind="replay", threads=1, measured_at=0.0
    )


def tuned(structure: Structure, target: str, trials: int = 4, unit: int = 16) -> Tuned:
    """The programs of a network: each layer a task, its latency that of its multiplications."""
    tasks, subgraphs, latencies = [], [], []
    before = 3
    for index, name in enumerate([*LAYERS, "head"]):
        width = structure.widths.get(name, LAYERS.get(name, CLASSES))
        task_id = content_key(target, name, before, width)[:12]
        tasks.append(
            Task(
                task_id=task_id,
                name=f"{name}_{before}_{width}",
                kind="conv2d",
                workload="",
                macs=64 * before * width,
            )
        )
        subgraphs.append(
            Subgraph(
                index=index,
                task_id=task_id,
                module=name,
                parameter=f"{name}.weight",
                output_shape=(1, 8, 8, width),
            )
        )
        latencies.append(
            TaskLatency(
                task_id=task_id,
                program_id=f"program-{task_id}",
                latency_ms=before * width / 1000.0 * SLOWNESS[name],
                channel_tiles=(max(1, width // unit), 1, unit) if name != "head" else (),
                reduction_tiles=(before, 1),
                trials=trials,
                lineage_trials=trials + (6 if name == "deep" else 0),
            )
        )
        before = width
    return Tuned(
        device_model=f"model-of-{target}",
        table=NetworkTable(tasks=tuple(tasks), subgraphs=tuple(subgraphs)),
        latencies=tuple(latencies),
        measured_programs=trials * len(tasks),
        failed_programs=0,
        device_s=0.1,
        wall_s=0.2,
    )


def accuracy(structure: Structure, epochs: int) -> float:
    """Pruning costs a little; pruning ``fragile`` costs too much; training gives some back."""
    lost = 0.0
    for name, channels in LAYERS.items():
        share = 1.0 - structure.widths.get(name, channels) / channels
        lost += share * (0.5 if name == "fragile" else 0.01)
    return round(DENSE_ACCURACY - lost + 0.0005 * epochs, 6)


def compared(work: CompareWork) -> Comparison:
    """Pairs with a little noise; what ``flat`` saves cannot be seen in the whole network."""
    seen = {
        name: width for name, width in work.candidate.structure.widths.items() if name != "flat"
    }
    ratio = 1.0
    for name, width in seen.items():
        ratio *= width / work.reference.structure.widths.get(name, LAYERS[name])
    noise = [1.0 + 0.002 * ((7 * index) % 5 - 2) for index in range(10)]
    return Comparison(
        reference_ms=tuple(10.0 * value for value in noise),
        candidate_ms=tuple(10.0 * ratio * value for value in reversed(noise)),
        reference=measurement(10.0),
        candidate=measurement(10.0 * ratio),
    )


def outcome_of(work: Work) -> Outcome:
    """What this world answers to a unit of work."""
    match work:
        case PrepareWork():
            return Prepared(dense=network(), groups=groups())
        case UniformWork():
            return UniformTrained(network=network(Structure(widths={"uniform": 1}), 0.95))
        case TuneWork():
            structure = work.network.structure if work.network else Structure()
            return tuned(structure, work.target, max([work.trials_per_task, *work.trials.values()]))
        case ScreenWork():
            return screened(work)
        case FineTuneWork():
            return FineTuned(network=network(work.structure, accuracy(work.structure, work.epochs)))
        case CompareWork():
            return Compared(comparison=compared(work), device_s=0.1)
        case ExportWork():
            return exported(work)


def screened(work: ScreenWork) -> Screened:
    candidate = work.candidate
    parent_ms = tuned(candidate.parent.structure, work.target).sum_ms
    if "stem" in candidate.groups:
        return Screened(
            candidate_id=candidate.candidate_id,
            tuned=None,
            refused="no variant of the program builds",
            parent_ms=parent_ms,
            candidate_ms=0.0,
            slower=("stem",),
        )
    found = tuned(candidate.structure, work.target, trials=2)
    return Screened(
        candidate_id=candidate.candidate_id,
        tuned=found,
        parent_ms=parent_ms,
        candidate_ms=found.sum_ms,
    )


def exported(work: ExportWork) -> Exported:
    def one(item: Trained, latency_ms: float) -> ExportedNetwork:
        return ExportedNetwork(
            latency=measurement(latency_ms),
            val_accuracy=item.val_accuracy,
            test_accuracy=item.val_accuracy,
            info=item.info,
        )

    dense, final = (tuned(item.structure, work.target) for item in (work.dense, work.final))
    return Exported(
        dense=one(work.dense, dense.sum_ms),
        final=one(work.final, final.sum_ms),
        dense_tuned=dense,
        final_tuned=final,
        speedup_ratios=(dense.sum_ms / final.sum_ms,) * 3,
        max_abs_difference=0.0,
        max_abs_output=1.0,
        checked_images=1,
        test_images=100,
        artifacts={"weights": "export/weights.safetensors"},
        device_s=0.1,
    )


@dataclass
class FakeWorkers:
    """Answers at the first ``wait``. ``fault`` may name a failure for a unit of work."""

    fault: Callable[[Work], Failure | None] = lambda work: None
    began: Callable[[Work], None] = lambda work: None
    work_s: float = 0.0
    executed: list[Work] = field(default_factory=list)
    cancelled: list[Work] = field(default_factory=list)
    closed: bool = False
    together: list[tuple[Work, ...]] = field(default_factory=list)
    _flying: dict[Hashable, tuple[Work, ...]] = field(default_factory=dict)
    _count: int = 0

    def submit(self, works: Sequence[Work]) -> Hashable:
        self._count += 1
        self._flying[self._count] = tuple(works)
        self.together.append(tuple(works))
        return self._count

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Finished]:
        handle = handles[0]
        works = self._flying.pop(handle)
        for work in works:
            self.began(work)
            time.sleep(self.work_s)
            failure = self.fault(work)
            if failure:
                return [Finished(handle=handle, failure=failure)]
        self.executed += works
        return [Finished(handle=handle, outcomes=tuple(outcome_of(work) for work in works))]

    def cancel(self, handles: Sequence[Hashable]) -> None:
        for handle in handles:
            self.cancelled += self._flying[handle]

    def close(self) -> None:
        self.closed = True
