"""Doctor and plan: what they find, and that a plan leaves nothing behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic_record

from orchestrator import doctor
from orchestrator.doctor import Check
from orchestrator.plan import in_words, make_plan, run_folder
from orchestrator.plan_checks import (
    file_checks,
    machine_checks,
    name_checks,
    start_checks,
)


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


PHONE = {
    "device": "tracker",
    "tracker_port": 9190,
    "tvm_target": {"kind": "llvm", "mtriple": "arm64-linux-android", "num-cores": 4},
}


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"data": {"name": "foo"}}, "data.name", "there is no 'foo'"),
        ({"model": {"name": "resnet18"}}, "model.name", "use torchvision:resnet18"),
        ({"model": {"name": "mods:nope"}}, "model.name", "has no function 'nope'"),
        ({"model": {"name": "mods.below:build"}}, "model.name", "no module mods.below"),
        ({"metric": "mods:inner"}, "metric", "has no function 'inner'"),
        ({"targets": [{"tvm_target": {}}]}, "targets[0].tvm_target", "has no kind"),
        ({"targets": [PHONE]}, "targets[0].tvm_target", "write aarch64-linux-android"),
        ({"targets": [{"threads": 999}]}, "target host", "set threads to at most"),
        (
            {"prune": {"policy": "uniform", "max_accuracy_drop": 0.1, "latency_target_ms": 1.0}},
            "prune.latency_target_ms",
            "leave it out or use another policy",
        ),
    ],
)
def test_names_that_lead_nowhere_are_wrong_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    field: str,
    text: str,
) -> None:
    (tmp_path / "mods.py").write_text(
        "def build():\n    inner = 1\n    return inner\nraise SystemExit\n"
    )
    monkeypatch.chdir(tmp_path)
    found = [c for c in start_checks(synthetic_record.config(**changes)) if c.name == field]
    assert [(check.level, check.wrong_input) for check in found] == [("fail", True)]
    assert text in f"{found[0].found} -> {found[0].cure}"


def test_a_cluster_that_does_not_answer_is_told_before_ray_waits_for_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert cluster_check(address).level == "ok"
    gone = cluster_check(address)
    assert gone.level == "fail" and gone.wrong_input
    assert f"nothing answers at {address}" in gone.found and "ray start --head" in gone.cure
    assert cluster_check("auto").level == cluster_check("ray://head:10001").level == "ok"


def cluster_check(address: str) -> Check:
    config = synthetic_record.config(cluster={"address": address})
    return next(check for check in machine_checks(config) if check.name == "cluster.address")


def test_a_function_of_ones_own_is_found_without_its_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "mine" / "nets.py").write_text("from other import build\nif True:\n    top = 1\n")
    (tmp_path / "star.py").write_text("from other import *\n")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.nets:build", "mine.nets:top", "star:anything"):
        checks = list(name_checks(synthetic_record.config(model={"name": name})))
        assert {check.level for check in checks} == {"ok"}


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        ((0, '["alexnet"]\n'), "ok", "torchvision:alexnet"),
        ((0, '["alexnot"]\n'), "fail", "torchvision:alexnot"),
        ((1, "ImportError: x"), "warn", "could not be asked"),
    ],
)
def test_torchvision_is_asked_for_names_that_are_not_known(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str], level: str, text: str
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda _: answer)
    check = next(name_checks(synthetic_record.config(model={"name": "torchvision:alexnet"})))
    assert check.level == level and text in check.found + check.cure


def test_home_stands_for_the_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    data = {"name": "imagefolder", "root": "~/images"}
    assert [c.level for c in file_checks(synthetic_record.config(data=data))] == ["ok"]
    assert run_folder(synthetic_record.config(output="~/out")) == tmp_path / "out" / "synthetic"


def test_folders_that_ray_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, text in (
        ("/tmp/\u00e4", "other than ASCII"),
        ("/tmp/" + "a" * 60, "longer than 39"),
        ("/dev/null/x", "is not a writable folder"),
    ):
        monkeypatch.setenv("TMPDIR", folder)
        check = doctor.check_ray_folder()
        assert check.level == "fail" and text in check.found and "TMPDIR" in check.cure
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert doctor.check_ray_folder().level == "ok"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    check = doctor.check_ray_token()
    assert check.level == "fail" and "HOME" in check.found
    assert "RAY_AUTH_TOKEN_PATH" in check.cure


def test_plan_of_the_default_run_has_an_estimate() -> None:
    plan = make_plan(synthetic_record.config())
    assert plan.seconds is not None and 60 < plan.seconds[0] < plan.seconds[1]
    assert "min" in in_words((100.0, 1000.0))


def test_plan_says_when_it_knows_no_time(tmp_path: Path) -> None:
    unknown = synthetic_record.config(model={"name": "torchvision:resnet34"})
    assert make_plan(unknown).seconds is None
    for number in range(100):
        path = tmp_path / "train" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    images = {"name": "imagefolder", "root": str(tmp_path), "image_size": 224}
    known = synthetic_record.config(model={"name": "torchvision:resnet18"}, data=images)
    assert make_plan(known).seconds is not None


@pytest.mark.parametrize("trained", [1, 2])
def test_plan_tells_how_many_candidates_a_round_screens(trained: int) -> None:
    """Where one is trained, that is one cut of the whole network as long as there is one."""
    prune = {"max_accuracy_drop": 0.01, "fine_tuned_per_round": trained, "tasks_per_round": 3}
    plan = make_plan(synthetic_record.config(prune=prune))
    search = next(phase for phase in plan.phases if phase.name == "search")
    assert (": up to " in search.what) == (trained == 1)
    assert f"{trained} fine-tuned" in search.what


def test_plan_writes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "in" / "run.yaml"
    config.parent.mkdir()
    config.write_text("prune: {max_accuracy_drop: 0.01}\nmodel: {name: 'mine:build'}\n")
    (tmp_path / "in" / "mine.py").write_text("def build(): ...\nraise SystemExit('imported')\n")
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
            "RAY_TMPDIR": "/tmp",
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
