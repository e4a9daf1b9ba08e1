"""The report of a run: one self-contained page and the summary, written into the run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from schemas.record import RunRecord
from schemas.summary import Summary
from workers.whole_files import write_whole

PAGE = Path("report", "index.html")
"""Of a run, below its folder."""


def write_report(record: RunRecord, run_dir: str | os.PathLike[str]) -> Path:
    """Write ``report/index.html`` and ``summary.json`` below ``run_dir``; the page's path.

    Each file is replaced as a whole: a reader sees the old one or the new one.

    Raises:
        OSError: when the folder cannot be written to.
    """
    from orchestrator.report.page import render
    from orchestrator.summary import summarise

    folder = Path(run_dir)
    summary = summarise(record)
    page = folder / PAGE
    replace_file(page, render(record, summary))
    replace_file(folder / "summary.json", summary_text(summary))
    return page


def summary_text(summary: Summary) -> str:
    """The summary as JSON text."""
    return json.dumps(summary.model_dump(mode="json"), indent=2) + "\n"


def replace_file(path: Path, text: str) -> None:
    """Write a file as a whole: a reader sees the old one or the new one."""
    write_whole(path, text.encode())
