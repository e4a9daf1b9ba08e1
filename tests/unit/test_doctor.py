"""Doctor and plan: what they find, and that a plan leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_record

from orchestrator import doctor
from orchestrator.plan import in_words, make_plan


def test_no_compiler_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    check = doctor.check_compiler()
    assert check.level == "fail" and "build-essential" in check.cure
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in doctor.check_compiler().found


def test_a_compiler_that_cannot_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho no linker >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    check = doctor.check_compiler()
    assert check.level == "fail" and "no linker" in check.found


def test_a_crash_of_the_tvm_pair_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TVM_PROBE", "import os; os.kill(os.getpid(), 11)")
    check = doctor.check_tvm()
    assert check.level == "fail" and "segmentation fault" in check.found
    assert "apache-tvm-ffi==" in check.cure


def test_a_probe_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.5)
    assert doctor.probe("import time; time.sleep(60)") == (None, "")


def test_disk_memory_threads_and_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED_DISK_GB", 1e9)
    disk = doctor.check_disk(tmp_path / "not" / "there")
    assert disk.level == "fail" and "1e+09 GB" in disk.cure
    monkeypatch.setattr(doctor, "NEEDED_MEMORY_GB", 1e9)
    assert doctor.check_memory().level == "warn"
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    assert "TVM_NUM_THREADS=1" in doctor.check_threads().found
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert doctor.check_ray_token().level == "warn"
    token.chmod(0o600)
    assert doctor.check_ray_token().level == "ok"


def test_plan_finds_what_stands_in_the_way(tmp_path: Path) -> None:
    config = synthetic_record.config(
        model={"checkpoint": str(tmp_path / "none.pt")},
        data={"name": "no_such_module:splits"},
        targets=[
            {"name": "cores", "cores": [100_000]},
            {"name": "far", "device": "tracker", "tracker_port": 1, "tracker_host": "127.0.0.1"},
        ],
    )
    plan = make_plan(config)
    assert not plan.fit and plan.seconds is None
    failed = {check.name for check in plan.checks if check.level == "fail"}
    assert {"model.checkpoint", "data.name", "target cores", "target far"} <= failed


def test_plan_of_the_default_run_has_an_estimate() -> None:
    plan = make_plan(synthetic_record.config())
    assert plan.seconds is not None and 60 < plan.seconds[0] < plan.seconds[1]
    assert "min" in in_words((100.0, 1000.0))


def test_plan_writes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "in" / "run.yaml"
    config.parent.mkdir()
    config.write_text("prune: {max_accuracy_drop: 0.01}\nmodel: {name: 'mine:build'}\n")
    (tmp_path / "in" / "mine.py").write_text("raise SystemExit('imported')\n")
    work, home, temporary = (tmp_path / name for name in ("work", "home", "tmp"))
    for folder in (work, home, temporary):
        folder.mkdir()
    before = sorted(tmp_path.rglob("*"))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "orchestrator", "plan", str(config)],
        cwd=work,
        env={
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(root),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "roughly" in done.stdout and "run folder: runs/run" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before
