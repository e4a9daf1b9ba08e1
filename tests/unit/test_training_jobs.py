"""A candidate's training: at the widths on the way to its own, as one training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schemas.config import DataConfig, ModelConfig, PruneConfig, RunConfig, TrainConfig
from schemas.network import Sensitivity, Structure, Trained
from schemas.progress import ProgressEvent
from schemas.work import FineTuned, FineTuneWork, Prepared, PrepareWork
from workers import jobs
from workers.artifacts import ArtifactStore
from workers.errors import LimitReached, TrainingTimedOut
from workers.jobs import TrainingJobs
from workers.networks import Networks
from workers.training.images import TensorImages

CONFIG = RunConfig(
    model=ModelConfig(name="small_resnet"),
    data=DataConfig(
        name="drawn", image_size=8, arguments={"train": 64, "validation": 32, "test": 10}
    ),
    train=TrainConfig(epochs=1),
    prune=PruneConfig(max_accuracy_drop=0.1),
)


class World:
    def __init__(self, folder: Path, config: RunConfig = CONFIG) -> None:
        self.events: list[ProgressEvent] = []
        self.networks = Networks(config, ArtifactStore(str(folder / "artifacts")))
        self.jobs = TrainingJobs(self.networks, threads=1, progress=self.events.append)

    def dense(self) -> Trained:
        prepared = self.jobs.run(PrepareWork())
        assert isinstance(prepared, Prepared)
        self.events.clear()
        return prepared.dense

    def quarter(self) -> Structure:
        groups = [group for group in self.networks.groups if group.prunable]
        return Structure(widths={group.group_id: group.share(0.25) for group in groups})

    def fine_tuned(self, parent: Trained, structure: Structure, most: float) -> Trained:
        done = self.jobs.run(
            FineTuneWork(
                parent=parent,
                structure=structure,
                epochs=2,
                learning_rate=0.01,
                most_pruned_at_once=most,
                teacher=parent,
            )
        )
        assert isinstance(done, FineTuned)
        return done.network


def test_a_deep_cut_is_trained_at_the_widths_on_the_way_as_one_training(tmp_path: Path) -> None:
    world = World(tmp_path)
    dense, quarter = world.dense(), world.quarter()
    slowly = world.fine_tuned(dense, quarter, 0.5)
    assert 1 / 16 < slowly.info.macs / dense.info.macs < 1 / 8, "so four steps by a half"
    assert slowly.structure == quarter
    assert slowly.epochs == 4 * 2
    assert {event.epochs for event in world.events} == {8}
    ends = [event.epoch for event in world.events if event.batch == event.batches]
    assert sorted(set(ends)) == list(range(1, 9))
    elapsed_s = [event.elapsed_s for event in world.events]
    assert elapsed_s == sorted(elapsed_s)
    assert slowly.train_s >= elapsed_s[-1]

    at_once = world.fine_tuned(dense, quarter, 1.0)
    assert at_once.epochs == 2
    assert at_once.info == slowly.info
    assert at_once.weights != slowly.weights


def test_the_time_a_training_may_take_is_that_of_all_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(
        tmp_path, CONFIG.model_copy(update={"train": TrainConfig(epochs=1, timeout_s=15)})
    )
    dense, quarter = world.dense(), world.quarter()
    clock = iter(range(1_000_000))  # a second for each look at it
    monkeypatch.setattr("workers.training.train.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(TrainingTimedOut, match="a training took longer than 15 s"):
        world.fine_tuned(dense, quarter, 0.5)
    assert world.events[-1].epoch == 3, "in the second step"


def test_a_gpu_whose_memory_is_too_small_is_told_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(jobs, "train", full)
    with pytest.raises(LimitReached, match=r"train\.batch_size.*Tried to allocate.*max_parallel"):
        World(tmp_path).dense()


def test_sensitivities_are_those_of_all_classes_where_the_images_lie_class_by_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    splits = world.networks.splits
    labels = torch.arange(10).repeat_interleave(60)
    ordered = TensorImages(torch.zeros(600, *splits.validation[0][0].shape), labels)
    world.networks.splits = replace(splits, validation=ordered)
    seen: list[int] = []

    def watched(*arguments: object, **options: object) -> tuple[Sensitivity, ...]:
        for _, labels in arguments[3]:  # type: ignore[attr-defined]
            seen.extend(labels.tolist())
        return ()

    monkeypatch.setattr("workers.jobs.sensitivities", watched)
    world.dense()
    assert len(seen) == 256
    assert {seen.count(label) for label in range(10)} <= {25, 26}
