"""What the commands share: their arguments, reading what they name, and leaving with one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from schemas.config import RunConfig
    from schemas.record import RunRecord

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, such as runs/quickstart.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; may be repeated."),
]


def load(path: Path, settings: Sequence[str] | None) -> RunConfig:
    """The configuration; modules beside it become importable, in Ray's workers too."""
    from orchestrator.configuration import load_config

    config = load_config(path, settings or ())
    folders = [str(path.resolve().parent), os.getcwd()]
    for folder in folders:
        if folder not in sys.path:
            sys.path.insert(0, folder)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    known = [*folders, *(item for item in inherited if item)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(known))
    return config


def check_start(config: RunConfig) -> None:
    """Leave with the first thing that would stop a run at once."""
    from orchestrator.plan_checks import start_checks

    for check in start_checks(config):
        if check.level == "fail":
            message = f"{check.name}: {check.found}; {check.cure}."
            fail(message, 2 if check.wrong_input else 1)


def read(run_dir: Path) -> RunRecord:
    if not run_dir.is_dir():
        fail(f"{run_dir}: there is no such run folder; 'cprune run CONFIG' makes one.", 2)
    from orchestrator.run_folder import what_to_name
    from orchestrator.store.reader import Unreadable, read_run

    try:
        record: RunRecord = read_run(run_dir)
    except Unreadable as error:
        fail(f"{error}.", 2)
    except FileNotFoundError as error:
        fail(f"{error}; {what_to_name(run_dir)}.", 2)
    return record


def relative(path: Path) -> str:
    """The path from the current folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def fail(message: str, code: int) -> NoReturn:
    """Print one line to standard error and leave with ``code``; never returns."""
    typer.echo(f"cprune: {message}", err=True)
    raise typer.Exit(code)
