"""A comparison whose runs have workers of this process that answer at once."""

from __future__ import annotations

import functools
from pathlib import Path

import fake_world
import pytest
from driver_world import opening

from orchestrator import driver
from orchestrator.compare import comparison
from orchestrator.compare.comparison import compare
from orchestrator.compare.methods import BASELINES, OURS
from orchestrator.dispatch import Workers
from orchestrator.store.base import Ledger
from orchestrator.store.reader import read_run
from schemas.comparison import MethodTable
from schemas.config import RunConfig
from schemas.record import RunRecord
from schemas.work import Work

REPLAY = [{"name": "host", "device": "replay", "recording": "answers.jsonl"}]


def base(**changes: object) -> RunConfig:
    values: dict[str, object] = {
        "prune": {"max_accuracy_drop": 0.2, "min_width_fraction": 0.3},
        "targets": REPLAY,
        **changes,
    }
    return fake_world.config(**values)


def quiet(text: str) -> None:
    pass


class World:
    """Runs every method with workers of this process, and keeps what they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.workers: dict[str, fake_world.FakeWorkers] = {}
        run = functools.partial(driver.run, workers_factory=self._open)
        monkeypatch.setattr(comparison.driver, "run", run)
        self.fault = lambda work: None

    def go(
        self,
        methods: tuple[str, ...] = (OURS, *BASELINES),
        original_candidates: int = 3,
        **changes: object,
    ) -> MethodTable:
        tables = compare(
            base(**changes),
            self.folder,
            methods,
            is_quick=False,
            original_candidates=original_candidates,
            report=quiet,
        )
        return tables[0]

    def record(self, method: str) -> RunRecord:
        return read_run(self.folder / method)

    def _open(self, config: RunConfig, folder: Path) -> tuple[Ledger, Workers]:
        weights = fake_world.network().weights
        stored = folder / "artifacts" / weights[:2] / f"{weights}.safetensors"
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(b"dense weights")
        self.workers[config.run] = fake_world.FakeWorkers(fault=self.fault)
        return opening(self.workers[config.run])(config, folder)

    def works(self, method: str, kind: type) -> list[Work]:
        return [work for work in self.workers[method].executed if isinstance(work, kind)]
