"""``cprune cancel``: a run is stopped from another process, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.cancel import CannotCancel, ask_to_stop
from orchestrator.run_folder import LOCK, holder_of, is_locked, locked

WORKER = """
import sys, threading
from pathlib import Path
from orchestrator.interrupts import Interrupts
from orchestrator.run_folder import locked

told = threading.Semaphore(0)
with locked(Path(sys.argv[1])), Interrupts(lambda text: told.release()) as interrupts:
    print("works", flush=True)
    for _ in range(int(sys.argv[2])):
        told.acquire()
print(interrupts.count)
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def worker(run_dir: Path, signals: int) -> subprocess.Popen[str]:
    """A process that works on the run until it has been told to stop so many times."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(run_dir), str(signals)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "works\n"
    return process


@pytest.mark.parametrize(("now", "signals", "words"), [(False, 1, "5 min"), (True, 2, "cancels")])
def test_the_process_that_works_on_the_run_is_told(
    run_dir: Path, now: bool, signals: int, words: str
) -> None:
    process = worker(run_dir, signals)
    try:
        assert holder_of(run_dir) == process.pid
        text = ask_to_stop(run_dir, now=now)
        assert text.startswith(f"process {process.pid} ") and words in text
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (output, process.returncode) == (f"{signals}\n", 0)
    assert not is_locked(run_dir)


def test_a_run_that_nobody_works_on_is_said(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(run_dir):
        pass
    with pytest.raises(SystemExit) as left:
        cli.main(["cancel", str(run_dir)])
    assert left.value.code == 1
    assert capsys.readouterr().err == (
        f"cprune: no process works on {run_dir}: there is nothing to stop.\n"
    )


def test_a_folder_that_is_no_runs_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(CannotCancel, match=r"is no run's folder: name the folder of a run") as no:
        ask_to_stop(tmp_path, now=False)
    assert no.value.exit_code == 2


def test_a_process_that_only_has_the_number_is_left_alone(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of another machine: there its process has the number, here a stranger may."""
    run_dir.mkdir()
    (run_dir / LOCK).write_text("")
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monkeypatch.setattr("orchestrator.cancel.holder_of", lambda _: stranger.pid)
        monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it was sent a signal"))
        with pytest.raises(CannotCancel, match="not one of this machine or of this user"):
            ask_to_stop(run_dir, now=False)
    finally:
        monkeypatch.undo()
        stranger.kill()
        stranger.communicate()
