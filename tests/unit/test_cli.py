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
import records_world
import synthetic_record
from typer.testing import CliRunner

from orchestrator import cli, console, doctor, driver
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


def test_what_the_user_gave_wrongly_is_exit_code_2(
    config: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in ("model.name=resnet18", "data.name=foo", "model.checkpoint=none.pt"):
        assert call("run", str(config), "--set", setting) == 2
        assert call("plan", str(config), "--set", setting) == 2
        assert setting.partition("=")[0] in capsys.readouterr().err
    changes = {"state": "failed", "error": "prune.accuracy_floor is 1", "wrong_input": True}
    record = synthetic_record.record(finished=False).model_copy(update=changes)
    monkeypatch.setattr(driver, "run", finish(record))
    assert call("run", str(config)) == 2


def test_a_run_that_has_ended_needs_no_device(
    config: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "has_ended", lambda *_: True)
    monkeypatch.setattr(driver, "run", finish(synthetic_record.record()))
    setting = "targets=[{device: tracker, tracker_port: 1}]"
    assert call("run", str(config), "--set", setting) == 0


def test_hints_repeat_the_options(
    config: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config.rename(config.with_name("my run.yaml"))
    record = synthetic_record.record(finished=False)
    monkeypatch.setattr(driver, "run", finish(record))
    assert call("run", str(path), "--set", "run=exits", "--set", "data.arguments={a: 1}") == 130
    told = capsys.readouterr().out
    hint = f"next: cprune run '{path}' --set run=exits --set 'data.arguments={{a: 1}}' (goes on)"
    assert hint in told
    call("plan", str(path), "--set", "run=exits")
    assert f"next: cprune run '{path}' --set run=exits\n" in capsys.readouterr().out


def test_the_table_says_what_its_speedups_are(run_dir: Path, capsys: Any) -> None:
    call("report", str(run_dir))
    told = capsys.readouterr().out
    assert "host: 8 accepted of 14 decided" in told
    uniform = next(line for line in told.splitlines() if " uniform " in line)
    assert "~1.90x" in uniform and "~: of medians alone" in told
    assert "host: 1.76x faster than the dense network" in told


def test_no_accepted_step_is_said(run_dir: Path, capsys: Any, monkeypatch: Any) -> None:
    record = synthetic_record.unpruned()
    monkeypatch.setattr(reader, "read_run", lambda _: record)
    monkeypatch.setenv("COLUMNS", "100")  # narrow tables break "dense (final)" over two lines
    assert call("report", str(run_dir)) == 0
    told = capsys.readouterr().out
    assert "host: no step was accepted: the result is the dense network" in told
    assert "faster" not in told and "dense (final)" in told


def test_a_page_that_cannot_be_written_does_not_keep_the_table(
    run_dir: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("orchestrator.report.write_report", refuse)
    assert call("report", str(run_dir)) == 1
    captured = capsys.readouterr()
    assert "pruned" in captured.out and captured.err.count("\n") == 1
    assert "Permission denied" in captured.err and "--json" in captured.err


def test_colons_are_no_pictures(capsys: Any) -> None:
    console.print_table(["found"], [["a:smile:b"]])
    assert "a:smile:b" in capsys.readouterr().out


def test_a_comparison_is_refused_before_anything_is_started(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"run: x\noutput: {tmp_path}\nprune: {{max_accuracy_drop: 0.1}}\n")
    assert call("compare", str(path), "--quick", "--paper") == 2
    assert "--quick and --paper exclude each other" in capsys.readouterr().err
    assert call("compare", str(path), "--method", "amc") == 2
    assert "--method amc: choose from ours, uniform-l1, fpgm" in capsys.readouterr().err
    assert call("compare", str(path), "--set", "prune.latency_target_ms=1.0") == 2
    assert "prune.latency_target_ms: a comparison pushes every" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


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


def test_status_tells_how_far_a_training_is(run_dir: Path, capsys: Any) -> None:
    (run_dir / "progress").mkdir()
    told = {"what": "prepare", "epoch": 2, "epochs": 24, "batch": 5, "batches": 9}
    told |= {"loss": 0.5, "val_accuracy": 0.1875, "elapsed_s": 1.0}
    (run_dir / "progress" / "a.json").write_text(json.dumps(told))
    assert call("status", str(run_dir)) == 0
    said = capsys.readouterr().out
    assert "training: dense network, epoch 2/24, validation 18.75%" in said


def test_status_of_what_is_no_run(tmp_path: Path, capsys: Any) -> None:
    assert call("status", str(tmp_path / "none")) == 2
    assert call("status", str(tmp_path)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 2 and "no such run folder" in errors


def test_folders_of_something_else_are_called_what_they_are(tmp_path: Path, capsys: Any) -> None:
    assert call("status", str(tmp_path)) == 2
    assert "cprune run CONFIG" in capsys.readouterr().err
    (tmp_path / "structure.json").touch()
    assert call("status", str(tmp_path)) == 2
    assert "exported network" in capsys.readouterr().err
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "ledger.sqlite").touch()
    assert call("report", str(tmp_path)) == 2
    assert "name one of the runs below it: ours" in capsys.readouterr().err
    (tmp_path / "comparison.html").touch()
    assert call("status", str(tmp_path)) == 2
    assert "see comparison.html in it, or name one of its runs: ours" in capsys.readouterr().err


def test_export_copies_the_artefacts(run_dir: Path, tmp_path: Path, capsys: Any) -> None:
    dest = tmp_path / "dest"
    assert call("export", str(run_dir), str(dest)) == 0
    assert (dest / "export/host/network.so").read_text() == "network.so"
    assert (dest / "export/host/extra.txt").exists()
    assert call("export", str(run_dir), str(dest)) == 2
    assert "not empty" in capsys.readouterr().err
    (run_dir / "export/host/network.so").unlink()
    assert call("export", str(run_dir), str(tmp_path / "other")) == 2
    errors = capsys.readouterr().err
    assert "network.so is missing" in errors and "--set run=NAME" in errors


def test_plan_names_the_record_store(config: Path, tmp_path: Path, capsys: Any) -> None:
    call("plan", str(config), "--set", "records.path=mine.sqlite")
    assert f"records: {tmp_path / 'mine.sqlite'} (shared" in capsys.readouterr().out
    call("plan", str(config), "--set", "records.share=false")
    assert "records: not shared" in capsys.readouterr().out
    recording = "targets=[{recording: answers.jsonl}]"
    call("plan", str(config), "--set", recording)
    assert "takes none, because of targets[].recording" in capsys.readouterr().out


class TestClean:
    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return tmp_path / "cprune" / "records.sqlite"

    @pytest.fixture
    def filled(self, path: Path) -> Path:
        shared = records_world.store(path)
        shared.keep([records_world.program(1), records_world.program(2)])
        shared.close()
        return path

    def test_it_makes_no_store(self, path: Path, capsys: Any) -> None:
        assert call("clean") == 0 and call("clean", "--records", "--yes") == 0
        assert capsys.readouterr().out == f"{path}: no records\n" * 2
        assert not path.parent.exists()

    def test_it_says_what_there_is(self, filled: Path, capsys: Any) -> None:
        assert call("clean") == 0
        told = capsys.readouterr().out
        assert f"{filled}: 2 programs of 1 task, 0.0 MB" in told and "--records" in told
        assert call("clean") == 0

    @pytest.mark.parametrize(("answer", "left"), [("n", 2), ("y", 0)])
    def test_it_asks_before_it_removes(self, filled: Path, answer: str, left: int) -> None:
        result = CliRunner().invoke(cli.app, ["clean", "--records"], input=answer)
        assert result.exit_code == 0 and "Remove them?" in result.output
        shared = records_world.store(filled)
        assert shared.extent()[0] == left
        shared.close()

    def test_it_does_not_ask_where_told_so(self, filled: Path, capsys: Any) -> None:
        assert call("clean", "--records", "--yes") == 0 and "removed" in capsys.readouterr().out
        assert call("clean") == 0 and "0 programs" in capsys.readouterr().out

    def test_it_removes_what_is_no_store(self, path: Path, capsys: Any) -> None:
        path.parent.mkdir()
        path.write_text("not a store at all" * 100)
        assert call("clean") == 0 and "not a database" in capsys.readouterr().out
        assert call("clean", "--records", "--yes") == 0 and not path.exists()


def test_version(capsys: Any) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("cprune ")
