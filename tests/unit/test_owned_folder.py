"""Temporary folders of owners that died are removed by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from workers.owned_folder import OwnedFolder

OWNER = (
    "import sys, time; from workers.owned_folder import OwnedFolder\n"
    "print(OwnedFolder('cprune-test-').path, flush=True); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_until_it_is_removed(temporary: Path) -> None:
    folder = OwnedFolder("cprune-test-")
    (folder.path / "program.so").touch()
    assert list(temporary.iterdir()) == [folder.path]
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_owner_left_is_removed_by_the_next(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        try:
            left = Path(one.stdout.readline().strip())
            (left / "program.so").touch()
            beside = OwnedFolder("cprune-test-")
            assert left.is_dir(), "its owner lives"
        finally:
            os.kill(one.pid, signal.SIGKILL)
    after = OwnedFolder("cprune-test-")
    assert not left.exists() and beside.path.is_dir() and after.path.is_dir()
    beside.remove()
    after.remove()


def test_folders_that_others_made_stay(temporary: Path) -> None:
    other = temporary / "cprune-test-by-hand"
    other.mkdir()
    OwnedFolder("cprune-test-").remove()
    assert other.is_dir()
