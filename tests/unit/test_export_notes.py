"""What an export left out is told wherever its result is."""

from __future__ import annotations

from html import escape

import synthetic_record

from orchestrator.report.page import render
from orchestrator.summary import summarise
from schemas.record import RunRecord
from schemas.work import Exported

NOTE = "no ONNX file: my_network:pooled does not export to ONNX (DispatchError: <aten.pool>)"


def record() -> RunRecord:
    """A finished run whose export has a note and no ONNX file."""
    whole = synthetic_record.record()
    work = []
    for item in whole.work:
        if isinstance(item.outcome, Exported):
            artifacts = {k: path for k, path in item.outcome.artifacts.items() if k != "onnx"}
            changes = {"notes": (NOTE,), "artifacts": artifacts}
            item = item.model_copy(update={"outcome": item.outcome.model_copy(update=changes)})
        work.append(item)
    return whole.model_copy(update={"work": tuple(work)})


def test_the_summary_and_the_page_say_what_is_missing() -> None:
    found = record()
    summary = summarise(found)
    assert summary.targets[0].notes == [NOTE]
    assert "onnx" not in summary.targets[0].artifacts
    assert f"<p>{escape(NOTE)}</p>" in render(found, summary)


def test_a_whole_export_has_no_notes() -> None:
    assert summarise(synthetic_record.record()).targets[0].notes == []
