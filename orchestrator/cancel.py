"""Stopping a run from another process: the signals that Ctrl-C sends in its own terminal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from orchestrator.configuration import CommandError
from orchestrator.interrupts import DRAIN_DEADLINE_S
from orchestrator.run_folder import LOCK, holder_of, what_to_name


class CannotCancel(CommandError):
    """Nothing was stopped; the message says why, and what to do instead.

    ``exit_code``: 2 for a folder that is no run's, 1 where no process can be told.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ask_to_stop(run_dir: Path, *, now: bool) -> str:
    """Tell the process that works on a run to stop, and say so; it is not waited for.

    It lets the work in flight end and saves it; with ``now`` it cancels it. A comparison that works
    on this run stops with it. Raises ``CannotCancel`` where no process of this machine works on it.
    """
    if not (run_dir / LOCK).exists():
        raise CannotCancel(f"{run_dir} is no run's folder: {what_to_name(run_dir)}.", 2)
    process = holder_of(run_dir)
    if process is None:
        raise CannotCancel(f"no process works on {run_dir}: there is nothing to stop.")
    if not _has_open(process, run_dir / LOCK):
        raise CannotCancel(
            f"{run_dir} is worked on by process {process}, which is not one of this machine or of "
            "this user: give the command there, or stop its job with 'ray job stop'."
        )
    os.kill(process, signal.SIGINT)
    if now:
        os.kill(process, signal.SIGTERM)  # another signal: two equal ones may arrive as one
        return f"process {process} cancels the work in flight and leaves"
    return (
        f"process {process} stops: the work in flight has {DRAIN_DEADLINE_S / 60:g} minutes to "
        "end, and is saved"
    )


def _has_open(process: int, path: Path) -> bool:
    """Whether the process is one that holds this file: its number may be another machine's."""
    try:
        files = psutil.Process(process).open_files()
    except psutil.Error:
        return False
    return any(os.path.exists(f.path) and os.path.samefile(f.path, path) for f in files)
