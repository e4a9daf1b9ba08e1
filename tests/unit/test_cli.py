"""The command line: exit codes, one line for each failure, and a quick --help."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import synthetic_record

from orchestrator import cli, doctor, driver
from orchestrator.store import reader
from orchestrator.store.config_guard import ConfigChanged
from schemas.record import RunRecord

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    code = caught.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "run.yaml"
    path.write_text("run: synthetic\nprune: {max_accuracy_drop: 0.01}\n")
    return path


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose record is the made-up one, with the files it names."""
    folder = tmp_path / "runs" / "synthetic"
    (folder / "export" / "host").mkdir(parents=True)
    record = synthetic_record.record()
    for name in ("weights.safetensors", "structure.json", "network.pt2", "network.onnx"):
        (folder / "export" / "host" / name).write_text(name)
    for name in ("network.so", "records.jsonl", "extra.txt"):
        (folder / "export" / "host" / name).write_text(name)
    monkeypatch.setattr(reader, "read_run", lambda _: record)
    monkeypatch.chdir(tmp_path)
    return folder


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "orchestrator", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    taken = time.perf_counter() - began
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"ray", "tvm", "torch", "numpy", "pydantic", "matplotlib"}
    assert "Find the fastest network" in done.stdout
    assert taken < 5.0, "0.3 s on a quiet machine"


def test_load_pruned_starts_nothing() -> None:
    code = (
        "import orchestrator, sys; orchestrator.load_pruned;"
        "sys.exit(bool({'ray', 'tvm', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)


def test_load_pruned_says_what_is_missing(tmp_path: Path) -> None:
    import orchestrator

    with pytest.raises(FileNotFoundError, match="holds no exported network"):
        orchestrator.load_pruned(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "export" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="several targets"):
        orchestrator.load_pruned(tmp_path)
    with pytest.raises(ValueError, match="holds no target 'c'"):
        orchestrator.load_pruned(tmp_path, target="c")


def test_bad_configuration_is_exit_code_2(config: Path, capsys: Any) -> None:
    assert call("plan", str(config), "--set", "prune.rankng=l1") == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "prune.ranking" in errors
    assert call("run", "nothing.yaml") == 2
    assert "no such configuration file" in capsys.readouterr().err


def finish(record: RunRecord) -> Any:
    def run(_: object, folder: Path, **__: object) -> RunRecord:
        Path(folder).mkdir(parents=True)
        return record

    return run


@pytest.mark.parametrize(
    ("state", "code"), [("done", 0), ("failed", 1), ("cancelled", 130), ("running", 130)]
)
def test_run_prints_the_result(
    config: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    record = synthetic_record.record().model_copy(update={"state": state})
    monkeypatch.setattr(driver, "run", finish(record))
    assert call("run", str(config)) == code
    captured = capsys.readouterr()
    assert "pruned" in captured.out and "1.76x" in captured.out
    assert "report: runs/synthetic/report/index.html" in captured.out
    assert Path("runs/synthetic/summary.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "goes on where it was"),
        (ConfigChanged("begun with another configuration"), 2, "another configuration"),
        (OSError(28, "No space left on device"), 1, "disk is full"),
        (ZeroDivisionError("what"), 1, "unexpected ZeroDivisionError: what"),
    ],
)
def test_failures_are_one_line(
    config: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    text: str,
) -> None:
    def run(*_: object, **__: object) -> RunRecord:
        raise error

    monkeypatch.setattr(driver, "run", run)
    assert call("run", str(config)) == code
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and text in errors


def test_run_refuses_a_full_disk_and_a_missing_compiler(
    config: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "NEEDED_DISK_GB", 1e9)
        assert call("run", str(config)) == 1
        assert "GB free in" in capsys.readouterr().err
    monkeypatch.setattr(doctor, "find_compiler", lambda: None)
    assert call("run", str(config)) == 1
    assert "build-essential" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_report_json_and_schema(run_dir: Path, capsys: Any) -> None:
    assert call("report", "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert call("report", str(run_dir), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    jsonschema.validate(summary, schema)
    assert not (run_dir / "summary.json").exists()
    assert call("report", str(run_dir)) == 0
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    assert call("report") == 2


def test_status(run_dir: Path, capsys: Any) -> None:
    assert call("status", str(run_dir)) == 0
    assert "8 of 14" in capsys.readouterr().out


def test_status_of_what_is_no_run(tmp_path: Path, capsys: Any) -> None:
    assert call("status", str(tmp_path / "none")) == 2
    assert call("status", str(tmp_path)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 2 and "no such run folder" in errors


def test_export_copies_the_artefacts(run_dir: Path, tmp_path: Path, capsys: Any) -> None:
    dest = tmp_path / "dest"
    assert call("export", str(run_dir), str(dest)) == 0
    assert (dest / "export/host/network.so").read_text() == "network.so"
    assert (dest / "export/host/extra.txt").exists()
    assert call("export", str(run_dir), str(dest)) == 2
    assert "not empty" in capsys.readouterr().err
    (run_dir / "export/host/network.so").unlink()
    assert call("export", str(run_dir), str(tmp_path / "other")) == 2
    assert "network.so is missing" in capsys.readouterr().err


def test_version(capsys: Any) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("cprune ")
