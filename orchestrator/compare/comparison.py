"""A comparison from beginning to end: one run after the other, then all networks measured."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from device_agents.local import DeviceLost
from device_agents.session import NoDevice
from device_agents.tracker_wire import TrackerUnreachable
from orchestrator import driver
from orchestrator.compare.finals import Finals, measure_finals
from orchestrator.compare.methods import (
    ABLATIONS,
    BASELINES,
    DENSE,
    OURS,
    RECORDS,
    RECORDS_OF_OTHERS,
    RECORDS_OF_START,
    START,
    Spent,
    method_config,
)
from orchestrator.compare.page import as_text, render
from orchestrator.compare.rows import most_trials, table_of
from orchestrator.configuration import CommandError
from orchestrator.report import PAGE, replace_file, write_report
from orchestrator.store.config_guard import ConfigChanged
from orchestrator.store.reader import NoRun, read_run
from orchestrator.store.records import RecordsUnusable, copy_store
from orchestrator.summary import exported_of, prepared_of, work_of
from schemas.comparison import MethodRow, MethodTable
from schemas.config import RunConfig
from schemas.record import RunRecord
from schemas.target import TargetConfig
from schemas.work import FineTuned
from workers.artifacts import ArtifactStore
from workers.measuring.gauge import ProgramFailed

DENSE_WEIGHTS = "dense.safetensors"

Report = Callable[[str], None]


class ComparisonStopped(CommandError):
    """It did not come to its end; the same command goes on.

    ``exit_code`` is that of the run: 1 failed, 2 wrong input, 130 interrupted.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(f"{message}; the same command goes on")
        self.exit_code = exit_code


def compare(
    base: RunConfig,
    folder: Path,
    methods: Sequence[str],
    *,
    is_quick: bool,
    original_candidates: int,
    report: Report,
) -> list[MethodTable]:
    """Run what is not done yet, measure all final networks; the tables, one for each target.

    Rows of other methods that ended before stay in the tables. Another method than ours that cannot
    run, or whose final library fails, has no row and is named with the reason. Writes
    ``comparison.json``, ``.csv``, ``.txt`` and ``.html`` into ``folder``. Given again, it goes on
    where it was.

    Raises:
        ComparisonStopped: a run failed or was stopped, or no device answered at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = _run(START, method_config(base, START, folder), report)
    if not (folder / OURS).exists():  # else its programs would be among them
        _give_records(folder / RECORDS, folder / RECORDS_OF_START, report)
    checkpoint = _dense_weights(start, folder)
    records: dict[str, RunRecord] = {}
    ours = Spent()

    def config_of(method: str) -> RunConfig:
        return method_config(
            base,
            method,
            folder,
            checkpoint=checkpoint,
            ours=ours,
            original_candidates=original_candidates,
        )

    records[OURS] = _run(OURS, config_of(OURS), report)
    ours = spent_in(records[OURS])
    _give_what_ours_has(records[OURS], folder, report)
    for method in (DENSE, *(name for name in methods if name != OURS)):
        records[method] = _run(method, config_of(method), report)
    others = (name for name in (*BASELINES, *ABLATIONS) if name not in records)
    rows = {name: _ended_row(config_of(name), report) for name in others}
    finished = [name for name, row in rows.items() if row is not None]
    records |= {name: row for name, row in rows.items() if row is not None}
    not_run = {method: run.error for method, run in records.items() if run.state != "done"}
    shown = (method for method in (DENSE, *methods, *finished) if method not in not_run)
    records = {method: records[method] for method in shown}
    tables = []
    for target in base.targets:
        finals = _finals(records, folder, target, base, report)
        failed = finals.failed if finals is not None else {}
        ran = {method: record for method, record in records.items() if method not in failed}
        table = table_of(ran, target.name, finals, is_quick=is_quick, not_run=not_run | failed)
        tables.append(table)
    write(tables, folder)
    return tables


def write(tables: Sequence[MethodTable], folder: Path) -> None:
    """The comparison as JSON, CSV, text and a page."""
    content = [table.model_dump(mode="json") for table in tables]
    replace_file(folder / "comparison.json", json.dumps(content, indent=2) + "\n")
    replace_file(folder / "comparison.csv", as_csv(tables))
    replace_file(folder / "comparison.txt", as_text(tables))
    replace_file(folder / "comparison.html", render(tables))


def as_csv(tables: Sequence[MethodTable]) -> str:
    """All rows, one line each."""
    text = io.StringIO()
    fields = ["target", *MethodRow.model_fields]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            writer.writerow({"target": table.target, **row.model_dump(mode="json")})
    return text.getvalue()


def _run(method: str, config: RunConfig, report: Report) -> RunRecord:
    folder = Path(config.output) / config.run
    if method not in (START, OURS):
        _make_way(config, folder, report)
    if method in ABLATIONS and not folder.exists():
        own = Path(str(config.records.path))
        _give_records(own.with_name(RECORDS_OF_START), own, report)
    if driver.has_ended(config, folder):
        report(f"== {method}: {folder} (done)")
        record, is_told = read_run(folder), (folder / PAGE).exists()
    else:
        report(f"== {method}: {folder}")
        record, is_told = driver.run(config, folder, report=report), False
    if method not in (START, DENSE, OURS) and _cannot_run(record):
        report(f"{method} gets no row: {record.error}")
        return record
    if record.state != "done":
        told = f": {record.error}" if record.error else ""
        code = 130 if record.state != "failed" else 2 if record.wrong_input else 1
        raise ComparisonStopped(f"the run of {method} ({folder}) is {record.state}{told}", code)
    if not is_told:
        write_report(record, folder)
    return record


def _cannot_run(record: RunRecord) -> bool:
    """Whether the method failed by what it was given, rather than that it was interrupted or that
    a device or this machine failed."""
    is_interrupted = any(target.state == "cancelled" for target in record.targets)
    return record.state == "failed" and record.wrong_input and not is_interrupted


def _ended_row(config: RunConfig, report: Report) -> RunRecord | None:
    """The run of a row that was not asked for, if it ended and was given what it is to have."""
    folder = Path(config.output) / config.run
    try:
        might_go_on = not driver.has_ended(config, folder)
        record = read_run(folder)
    except ConfigChanged as change:
        report(f"{folder} is left out until it is asked for, when it begins again: {change}")
        return None
    except NoRun as error:
        if folder.exists():
            report(f"{folder} is left out: {error}")
        return None
    if record.state != "done":
        return None
    if might_go_on:
        report(f"{folder} stays as it ended; asked for, it goes on to the limits of now")
    return record


def _make_way(config: RunConfig, folder: Path, report: Report) -> None:
    """Set a row's run aside that was given less than ours has taken since."""
    try:
        driver.has_ended(config, folder)
    except ConfigChanged as change:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
            number += 1
        folder.rename(aside)
        report(f"{folder} begins again, what it was is in {aside.name}: {change}")


def _give_what_ours_has(ours: RunRecord, folder: Path, report: Report) -> None:
    """Let the others begin with what ours has measured, each time that it went on; what they had
    measured is forgotten."""
    last = str(ours.events[-1].sequence)
    given = folder / f"{RECORDS_OF_OTHERS}.event"
    if (folder / RECORDS_OF_OTHERS).exists() and given.exists() and given.read_text() == last:
        return
    _give_records(folder / RECORDS, folder / RECORDS_OF_OTHERS, report)
    replace_file(given, last)


def _give_records(path: Path, to: Path, report: Report) -> None:
    try:
        copy_store(path, to)
    except RecordsUnusable as error:
        report(f"{to.name} begins empty: {error}")


def _dense_weights(record: RunRecord, folder: Path) -> Path:
    """The dense network's weights as a file that the other runs begin with."""
    prepared = prepared_of(record)
    assert prepared is not None
    path = folder / DENSE_WEIGHTS
    if not path.exists():
        store = ArtifactStore(str(folder / START / "artifacts"))
        shutil.copyfile(store.local_path(prepared.dense.weights), path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return path


def spent_in(record: RunRecord) -> Spent:
    """What the baselines are not to have less of: where there are several targets, the most."""
    seconds = (
        sum(
            item.outcome.network.train_s
            for item in work_of(record, target)
            if isinstance(item.outcome, FineTuned)
        )
        for target in record.targets
    )
    trained = (
        sum(step.val_accuracy is not None for step in target.steps) for target in record.targets
    )
    exported = [
        found
        for target in record.targets
        if (found := exported_of(record, target.target)) is not None
    ]
    return Spent(
        candidates=max(trained),
        most_trials=max(map(most_trials, exported)),
        train_s=max(seconds),
    )


def _finals(
    records: dict[str, RunRecord], folder: Path, target: TargetConfig, base: RunConfig, told: Report
) -> Finals | None:
    if target.device == "replay":
        return None
    libraries = {}
    shape: tuple[int, ...] = ()
    for method, record in records.items():
        exported = exported_of(record, target.name)
        assert exported is not None
        run = Path(record.config.output) / record.config.run
        libraries[method] = run / exported.artifacts["library"]
        shape = exported.final.info.input_shape
    path = folder / f"finals-{target.name}.json"
    kept = Finals.model_validate_json(path.read_text()) if path.exists() else None
    try:
        finals = measure_finals(libraries, shape, target, base.measure, kept, told)
    except (DeviceLost, NoDevice, ProgramFailed, TrackerUnreachable) as error:
        raise ComparisonStopped(
            f"the final networks could not be measured on {target.name}: {error}"
        ) from error
    replace_file(path, finals.model_dump_json(indent=1) + "\n")
    return finals
