"""Copying what a run made to where it is used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.configuration import CommandError
from schemas.record import RunRecord


def copy_artefacts(
    record: RunRecord, run_dir: str | os.PathLike[str], dest: str | os.PathLike[str]
) -> list[Path]:
    """Copy artefacts, summary and report; the paths of the copies, relative to ``dest``.

    The layout stays that of the run folder, so that ``load_pruned(dest)`` works.

    Raises:
        CommandError: when there is nothing to copy, or ``dest`` is in use.
        OSError: when a file cannot be read or written.
    """
    from orchestrator.summary import summarise

    source, target = Path(run_dir), Path(dest)
    summary = summarise(record)
    named = [Path(path) for item in summary.targets for path in item.artifacts.values()]
    if not named:
        raise CommandError(
            f"{source}: the run is {record.state} and has exported nothing yet; "
            "finish it with 'cprune run' and the same configuration"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CommandError(f"{target}: the destination is not empty; name a new folder")
    files = {path for path in named if (source / path).is_file()}
    missing = sorted(str(path) for path in named if not (source / path).exists())
    if missing:
        raise CommandError(
            f"{source}: {', '.join(missing)} is missing; a finished run "
            "does not write it again: put back a copy, or give the run another name ('cprune run "
            "CONFIG --set run=NAME'), which takes over the programs measured before"
        )
    for folder in {(source / path).parent for path in named}:
        files |= {p.relative_to(source) for p in folder.rglob("*") if p.is_file()}
    files |= {p for p in (Path("summary.json"), Path("report/index.html")) if (source / p).exists()}
    for path in sorted(files):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, target / path)
    return sorted(files)
