"""The cost model: TVM's XGBoost model, trained anew from records at the start of each round.

TVM's own model is trained as it goes, so that its state depends on the order of what happened in
the process. Here the features of every record are kept, and the booster is a function of the
records alone, and of the samples of other tasks that it begins with.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xgboost
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.cost_model.xgb_model import FeatureGroup, XGBConfig, XGBModel

from schemas.table import Sample

_FAILED_MS = 1e10
_MIN_SAMPLES = 16
_BINS = 64
"""Of a feature's values. XGBoost's 256 rank no better and take 2.3 times as long to train
(benchmarks/EXPERIMENTS.md, bins of the cost model)."""

Features = np.ndarray[Any, Any]
"""A row of float32 for each statement of a program that stores something."""


def packed(features: Features) -> bytes:
    """Features as few bytes; most of them are zeros."""
    return zlib.compress(np.ascontiguousarray(features, dtype="float32").tobytes())


def unpacked(data: bytes, columns: int) -> Features:
    """What was packed, of so many columns."""
    return np.frombuffer(zlib.decompress(data), dtype="float32").reshape(-1, columns)


class _Config(XGBConfig):
    def to_dict(self) -> dict[str, Any]:
        """XGBoost's parameters."""
        return {**super().to_dict(), "max_bin": _BINS}


def extracted(context: ms.TuneContext, schedules: Sequence[Schedule]) -> list[Features]:
    """The features of programs of the context's task."""
    candidates = [ms.MeasureCandidate(schedule, args_info=[]) for schedule in schedules]
    found = ms.feature_extractor.PerStoreFeature().extract_from(context, candidates)
    return [features.numpy().astype("float32") for features in found]


def booster_of(model: ms.CostModel) -> bytes:
    """What a fitted model predicts with, for another process; empty where it guesses."""
    return b"" if model.booster is None else bytes(model.booster.save_raw("ubj"))


def model_of(booster: bytes) -> ms.CostModel:
    """A model that predicts as the one that ``booster`` was taken of."""
    model = _untrained(0)
    if booster:
        model.booster = xgboost.Booster(model_file=bytearray(booster))
        model.data_size = _MIN_SAMPLES
    return model


def _untrained(seed: int) -> ms.CostModel:
    return XGBModel(
        config=_Config(nthread=1, seed=seed, tree_method="hist"),
        num_warmup_samples=_MIN_SAMPLES,
        early_stopping_rounds=20,
        adaptive_training=False,
    )


class RecordModel:
    """Predicts how programs rank, from the features and latencies of those measured."""

    def __init__(self) -> None:
        self._columns = ms.feature_extractor.PerStoreFeature().feature_vector_length
        self._features: dict[str, Features] = {}
        self._prior: dict[str, FeatureGroup] = {}

    def begin_with(self, samples: Sequence[Sample]) -> None:
        """Learn from samples of other tasks besides. Of a task with records, those alone count."""
        of_tasks: dict[str, list[Sample]] = {}
        for sample in samples:
            of_tasks.setdefault(sample.task_id, []).append(sample)
        self._prior = {
            task_id: FeatureGroup(
                task_id,
                [unpacked(sample.features, self._columns) for sample in group],
                np.array([sample.latency_ms for sample in group], dtype="float32"),
            )
            for task_id, group in of_tasks.items()
        }

    def knows(self, program_id: str) -> bool:
        """Whether the program's features are kept."""
        return program_id in self._features

    def features(self, program_id: str) -> Features:
        """The features that are kept of the program; they may be no rows."""
        return self._features[program_id]

    def keep(self, program_id: str, features: bytes) -> None:
        """Keep a program's packed features."""
        self._features[program_id] = unpacked(features, self._columns)

    def fitted(self, records: dict[str, dict[str, float]], seed: int) -> ms.CostModel:
        """A model trained on ``records``: task -> program -> latency in ms, infinite if it failed.

        With fewer than ``_MIN_SAMPLES`` it guesses. Programs whose features are not kept are left
        out.
        """
        model = _untrained(seed)
        groups = [group for task_id, group in self._prior.items() if not records.get(task_id)]
        for task_id, latencies in records.items():
            known = [
                (self._features[program_id], min(latency, _FAILED_MS))
                for program_id, latency in latencies.items()
                if len(self._features.get(program_id, ())) > 0
            ]
            if any(latency < _FAILED_MS for _, latency in known):
                features, costs = zip(*known, strict=True)
                groups.append(
                    FeatureGroup(task_id, list(features), np.array(costs, dtype="float32"))
                )
        model.data = {group.group_hash: group for group in groups}
        model.data_size = sum(len(group.features) for group in groups)
        if model.data_size >= _MIN_SAMPLES:
            model._train(
                xs=[features for group in groups for features in group.features],
                ys=np.concatenate([group.min_cost / group.costs for group in groups]),
            )
        return model
