"""Each method's report beside the comparison: written when its run has gone on, and kept else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_world
import pytest
import synthetic_record

from orchestrator.compare import comparison
from orchestrator.compare.methods import OURS
from orchestrator.report import PAGE


@pytest.mark.parametrize(
    ("has_ended", "is_there", "written"),
    [(True, True, 0), (True, False, 1), (False, True, 1), (False, False, 1)],
)
def test_a_run_that_went_on_has_its_page_written_anew(
    has_ended: bool, is_there: bool, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fake_world.config(run="ours", output=str(tmp_path))
    page = tmp_path / "ours" / PAGE
    page.parent.mkdir(parents=True)
    if is_there:
        page.touch()
    record, reports = synthetic_record.record(), list[Any]()
    monkeypatch.setattr(comparison.driver, "has_ended", lambda *_: has_ended)
    monkeypatch.setattr(comparison.driver, "run", lambda *_, **__: record)
    monkeypatch.setattr(comparison, "read_run", lambda _: record)
    monkeypatch.setattr(comparison, "write_report", lambda *given: reports.append(given))
    assert comparison._run(OURS, config, lambda _: None) == record
    assert len(reports) == written
