"""Programs as a device would have measured them, and a store to share them in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.store import records
from orchestrator.store.records import RecordStore
from schemas.table import KnownTask, Measurement, Program, Sample

CONDITIONS = "tools of today"
TARGET = "target"


def program(number: int, task_id: str = "task", **changes: object) -> Program:
    """Program ``number``, measured on a local device; its trace is a kilobyte."""
    measurement = Measurement(
        run_ms=(1.0 + number,), device="here", device_kind="local", threads=1, measured_at=5.0
    )
    values: dict[str, object] = {
        "program_id": f"program-{number}",
        "task_id": task_id,
        "device_model": "m",
        "trace": "t" * 1000,
        "source": "search",
        "batch": f"work/{number}",
        "measurement": measurement,
    }
    return Program.model_validate({**values, **changes})


def simulated(number: int, kind: str) -> Program:
    """One that no device has measured."""
    real = program(number)
    assert real.measurement is not None
    measurement = real.measurement.model_copy(update={"device_kind": kind})
    return real.model_copy(update={"measurement": measurement})


def failed(number: int, error: str) -> Program:
    """One that did not build or run, or was condemned."""
    return program(number, measurement=None, error=error)


def sample(number: int, task_id: str = "task", **changes: object) -> Sample:
    """What a cost model learns from program ``number``."""
    values: dict[str, object] = {
        "program_id": f"program-{number}",
        "task_id": task_id,
        "device_model": "m",
        "target": TARGET,
        "latency_ms": 1.0 + number,
        "features": bytes([number]) * 600,
    }
    return Sample.model_validate({**values, **changes})


def known_task(task_id: str = "task", latency_ms: float = 1.0) -> KnownTask:
    """What other runs know of a task."""
    return KnownTask(
        task_id=task_id,
        kind="conv2d",
        macs=4096,
        output_shape=(1, 8, 8, 16),
        latency_ms=latency_ms,
    )


def store(path: Path, max_bytes: float = 1e9, conditions: str = CONDITIONS) -> RecordStore:
    return RecordStore(path, max_bytes, conditions)


def ageing_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordStore:
    """A store each of whose records is used later than those before."""
    now = itertools.count()
    monkeypatch.setattr(records.time, "time", lambda: float(next(now)))
    return store(path)


def numbers(programs: Sequence[Program | Sample]) -> list[int]:
    return [int(program.program_id.removeprefix("program-")) for program in programs]
