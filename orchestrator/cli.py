"""The ``cprune`` command.

Nothing heavy is imported before a command needs it, so that ``cprune --help`` answers at once.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli_compare import compare
from orchestrator.cli_parts import (
    ConfigPath,
    RunFolder,
    Settings,
    check_start,
    fail,
    load,
    read,
    relative,
)
from orchestrator.console import print_checks, print_table

if TYPE_CHECKING:
    from schemas.config import RunConfig
    from schemas.record import RunRecord

app = typer.Typer(
    name="cprune",
    help="Find the fastest network for a device that still meets an accuracy floor.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            version = metadata.version("cprune")
        except metadata.PackageNotFoundError:
            version = "not installed"
        typer.echo(f"cprune {version}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Options of every command."""
    context.obj = {"debug": debug}


@app.command()
def plan(config_path: ConfigPath, settings: Settings = None) -> None:
    """Say what a run would do and roughly how long it takes; write nothing."""
    from orchestrator import plan as planning

    config = load(config_path, settings)
    made = planning.make_plan(config)
    folder = planning.run_folder(config)
    typer.echo(f"{config.run}: {config.model.name} on {config.data.title}, seed {config.seed}")
    typer.echo(f"run folder: {folder}" + (" (exists: would go on)" if folder.exists() else ""))
    typer.echo(f"records: {planning.records(config)}")
    typer.echo(f"accuracy floor: {_floor(config)}\n")
    print_table(
        ["phase", "what", "roughly"],
        [[phase.name, phase.what, planning.in_words(phase.seconds)] for phase in made.phases],
    )
    typer.echo(f"in all, roughly: {planning.in_words(made.seconds)}\n")
    print_checks(made.checks)
    if not made.fit:
        typer.echo("cprune: put right what is marked fail, then plan again.", err=True)
        raise typer.Exit(2 if any(check.wrong_input for check in made.failed) else 1)
    typer.echo(f"\nnext: {_command('run', config_path, settings)}")


@app.command()
def run(config_path: ConfigPath, settings: Settings = None) -> None:
    """Run, or go on with a run that was interrupted."""
    from orchestrator import plan as planning

    config = load(config_path, settings)
    folder = planning.run_folder(config)
    again = _command("run", config_path, settings)
    from orchestrator import driver
    from orchestrator.progress import TrainingBars

    if not driver.has_ended(config, folder):
        check_start(config)
    typer.echo(f"{config.run}: results go to {relative(folder)}")
    try:
        with TrainingBars(folder, time.time()) as bars:
            record: RunRecord = driver.run(config, folder, report=bars.print_line, tick=bars.update)
    except KeyboardInterrupt:
        fail(f"interrupted; '{again}' goes on where it was.", 130)
    _results(record)
    written = _write_report(record, folder)
    _next_commands(record, again, folder)
    if record.state == "failed":
        raise typer.Exit(2 if record.wrong_input else 1)
    if record.state != "done":
        raise typer.Exit(130)
    raise typer.Exit(0 if written else 1)


@app.command()
def status(run_dir: RunFolder) -> None:
    """Say how far a run is."""
    from orchestrator.progress import trainings_in_flight
    from orchestrator.run_folder import is_locked

    record = read(run_dir)
    seconds = f"{record.wall_s:.0f} s, started {record.started}x"
    state: str = record.state
    if state == "running" and not is_locked(run_dir):
        state = "interrupted; the same 'cprune run' goes on"
    typer.echo(f"{record.config.run}: {state} ({seconds})")
    if record.error:
        typer.echo(f"error: {record.error}")
    rows = []
    for target in record.targets:
        accepted = sum(step.accepted for step in target.steps)
        current = target.final or target.current
        rows.append(
            [
                target.target,
                target.state,
                f"{accepted} of {len(target.steps)}",
                f"{current.val_accuracy:.2%}" if current else "",
                f"{target.accuracy_floor:.2%}" if target.accuracy_floor is not None else "",
                target.stopped_by,
            ]
        )
    print_table(["target", "state", "steps accepted", "validation", "floor", "stopped by"], rows)
    typer.echo(f"units of work finished: {len(record.work)}")
    for training in trainings_in_flight(run_dir):
        epoch = f"epoch {training.told.epoch}/{training.told.epochs}"
        typer.echo(
            f"training: {', '.join(filter(None, (training.name, epoch, training.accuracy)))}"
        )
    for event in record.events[-5:]:
        typer.echo(f"  {event.sequence:>4}  {event.target}  {event.state}  {event.message}")
    raise typer.Exit(1 if record.state == "failed" else 0)


@app.command()
def report(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN_DIR]", help="Folder of a run.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, and write nothing.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the summary's JSON schema.")
    ] = False,
) -> None:
    """Write the report page and summary.json of a run, or print the summary."""
    if schema:
        from orchestrator.summary import summary_schema

        typer.echo(json.dumps(summary_schema(), indent=2))
        return
    if run_dir is None:
        fail("name the run folder, for example: cprune report runs/quickstart.", 2)
    record = read(run_dir)
    if as_json:
        from orchestrator.report import summary_text
        from orchestrator.summary import summarise

        typer.echo(summary_text(summarise(record)), nl=False)
        return
    _results(record)
    if not _write_report(record, run_dir):
        raise typer.Exit(1)


@app.command()
def export(
    run_dir: RunFolder,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A new or empty folder.")],
) -> None:
    """Copy a finished run's artefacts, summary and report to another folder."""
    from orchestrator.export import copy_artefacts
    from orchestrator.summary import has_gone_on
    from orchestrator.wording import count

    record = read(run_dir)
    copied = copy_artefacts(record, run_dir, dest)
    typer.echo(f"{count(len(copied), 'file')} in {dest}:")
    for path in copied:
        typer.echo(f"  {path}")
    if any(has_gone_on(record, target) for target in record.targets):
        typer.echo("the search has gone on since this was exported", err=True)
    typer.echo(f'\nin Python: orchestrator.load_pruned("{dest}")')


app.command()(compare)


@app.command()
def devices(config_path: ConfigPath, settings: Settings = None) -> None:
    """Say which devices a configuration's targets have, and how many of them are free."""
    from orchestrator.devices import HEADINGS, look

    found = look(load(config_path, settings).targets)
    print_table(HEADINGS, [list(row) for row in found.rows])
    for problem in found.problems:
        typer.echo(f"cprune: {problem}", err=True)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def cancel(
    run_dir: RunFolder,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for the work in flight: it is lost.")
    ] = False,
) -> None:
    """Stop a run from another terminal, as Ctrl-C does in its own; what it has done is kept."""
    from orchestrator.cancel import ask_to_stop

    typer.echo(ask_to_stop(run_dir, now=now))
    typer.echo(f"next: cprune status {shlex.quote(relative(run_dir))}")


@app.command()
def doctor() -> None:
    """Check whether this machine can run cprune, and say what to do where it cannot."""
    from orchestrator.doctor import examine

    checks = list(examine())
    print_checks(checks)
    if any(check.level == "fail" for check in checks):
        raise typer.Exit(1)


@app.command()
def clean(
    records: Annotated[
        bool, typer.Option("--records", help="Remove the programs that runs share.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Say what runs share outside of their folders, and remove it if told to."""
    from orchestrator.clean import look, remove
    from orchestrator.store.records import store_path

    path = store_path()
    found = look(path)
    typer.echo(found.text)
    if not found.removable:
        return
    if not records:
        typer.echo("next: cprune clean --records removes them")
        return
    if not yes and not typer.confirm("Remove them? Later runs will measure these programs again"):
        return
    remove(path)
    typer.echo("removed")


# --------------------------------------------------------------------------------- helpers


def _write_report(record: RunRecord, folder: Path) -> bool:
    """Write the page and say where it is, or why it could not be written; whether it was."""
    from orchestrator.report import write_report

    try:
        page = write_report(record, folder)
    except OSError as error:
        typer.echo(
            f"cprune: the page cannot be written to {folder}: {error.strerror or error}; "
            f"'cprune report {shlex.quote(str(folder))} --json' prints the summary.",
            err=True,
        )
        return False
    typer.echo(f"report: {relative(page)}")
    return True


def _results(record: RunRecord) -> None:
    """The compact table of what came out."""
    from orchestrator import results
    from orchestrator.summary import summarise

    summary = summarise(record)
    for line in results.lines(summary):
        typer.echo(line)
    rows = results.rows(summary)
    if rows:
        print_table(results.HEADINGS, rows)
        if note := results.note(summary):
            typer.echo(note)


def _next_commands(record: RunRecord, again: str, folder: Path) -> None:
    where = shlex.quote(relative(folder))
    if record.state == "done":
        typer.echo(f"next: cprune report {where} --json    cprune export {where} DEST")
    elif record.state == "failed":
        typer.echo(f"next: cprune status {where}    cprune doctor", err=True)
    else:
        typer.echo(f"next: {again} (goes on)    cprune status {where}")


def _command(name: str, config_path: Path, settings: Sequence[str] | None) -> str:
    """A command with this configuration and these settings, to be typed as it is."""
    words = ["cprune", name, str(config_path)]
    for setting in settings or ():
        words += ["--set", setting]
    return shlex.join(words)


def _floor(config: RunConfig) -> str:
    if config.prune.accuracy_floor is not None:
        return f"{config.prune.accuracy_floor:.2%} of the validation images"
    points = 100 * (config.prune.max_accuracy_drop or 0.0)
    return f"at most {points:.2f} points of validation accuracy below the dense network"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leaves by ``SystemExit`` with the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="cprune")
    except KeyboardInterrupt:
        typer.echo("cprune: interrupted.", err=True)
        sys.exit(130)
    except Exception as error:
        if "--debug" in given:
            raise
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print what went wrong, a line for each problem; the exit code."""
    from orchestrator.configuration import CommandError, ConfigurationError
    from orchestrator.run_folder import RunLocked
    from orchestrator.store.base import LedgerError
    from orchestrator.store.config_guard import ConfigChanged
    from orchestrator.store.records import RecordsUnusable
    from workers.errors import UserError

    if isinstance(error, ConfigurationError):
        for problem in error.problems:
            typer.echo(f"cprune: {problem}", err=True)
        return error.exit_code
    if isinstance(error, CommandError):
        typer.echo(f"cprune: {error}", err=True)
        return error.exit_code
    if isinstance(error, UserError | ConfigChanged):
        typer.echo(f"cprune: {error}", err=True)
        return 2
    if isinstance(error, RunLocked | LedgerError | RecordsUnusable):
        typer.echo(f"cprune: {error}", err=True)
        return 1
    if isinstance(error, OSError):
        import errno

        if error.errno == errno.ENOSPC:
            message = "the disk is full; free some space and give the same command again."
        else:
            name = f" ({error.filename})" if error.filename else ""
            message = f"{error.strerror or error}{name}."
        typer.echo(f"cprune: {message}", err=True)
        return 1
    text = " ".join(str(error).split()) or "no message"
    typer.echo(
        f"cprune: unexpected {type(error).__name__}: {text} (cprune --debug ... shows where)",
        err=True,
    )
    return 1
