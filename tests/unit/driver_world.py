"""Starting the driver with workers and ledgers of its own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake_world

from orchestrator.dispatch import Workers
from orchestrator.driver import run
from orchestrator.interrupts import Interrupts
from orchestrator.store.base import Ledger
from orchestrator.store.reader import LEDGER
from orchestrator.store.sqlite import SqliteLedger
from schemas.config import RunConfig
from schemas.record import RunRecord

TWO = [{"name": "big"}, {"name": "small"}]
Opening = Callable[[RunConfig, Path], tuple[Ledger, Workers]]


def quiet(text: str) -> None:
    pass


def opening(workers: fake_world.FakeWorkers, ledger: Ledger | None = None) -> Opening:
    return lambda config, folder: (ledger or SqliteLedger(folder / LEDGER), workers)


def go(
    folder: Path,
    config: RunConfig | None = None,
    workers: fake_world.FakeWorkers | None = None,
    ledger: Ledger | None = None,
    interrupts: Interrupts | None = None,
) -> RunRecord:
    return run(
        config or fake_world.config(),
        folder,
        opening(workers or fake_world.FakeWorkers(), ledger),
        report=quiet,
        interrupts=interrupts,
    )


def decisions(record: RunRecord) -> list[object]:
    return [
        (
            target.target,
            target.stopped_by,
            target.final,
            [(step.candidate, step.accepted, step.reason) for step in target.steps],
        )
        for target in record.targets
    ]


def refuse(config: RunConfig, folder: Path) -> tuple[Ledger, Workers]:
    raise AssertionError("nothing is left to do")


def stopped() -> Interrupts:
    signals = Interrupts()
    signals.notice()
    return signals
