"""What is looked at of each target before any work."""

from __future__ import annotations

from typing import Any

import pytest

from device_agents import tracker_wire
from device_agents.tracker_wire import DeviceEntry, TrackerSummary
from orchestrator import doctor
from orchestrator.doctor import Check
from orchestrator.target_checks import target_checks
from schemas.target import TargetConfig

PHONE = {"kind": "llvm", "mtriple": "aarch64-linux-android", "num-cores": 4}


def checks(**target: Any) -> list[Check]:
    return list(target_checks(0, TargetConfig.model_validate(target), here=True))


def first_failed(**target: Any) -> Check:
    return next(check for check in checks(**target) if check.level == "fail")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ({"kind": "nonsense"}, 'Target kind "nonsense" is not defined'),
        ({"kind": "llvm"}, "does not give num-cores"),
        ({**PHONE, "mcpu": "cortex-x99"}, "knows no mcpu cortex-x99 there, only others, as cortex"),
        (
            {"kind": "opencl", "host": {**PHONE, "mcpu": "cortex-a7x"}},
            "knows no mcpu cortex-a7x",
        ),
    ],
)
def test_what_tvm_or_llvm_do_not_know_is_wrong(target: dict[str, Any], text: str) -> None:
    check = first_failed(device="tracker", tracker_port=9, tvm_target=target)
    assert check.wrong_input and text in check.found and check.name == "targets[0].tvm_target"


def test_targets_that_are_known_are_well() -> None:
    here = checks(tvm_target={"kind": "llvm", "num-cores": 4})
    assert [check.level for check in here] == ["ok", "ok"]
    phone = {"device": "tracker", "tracker_port": 9, "tvm_target": {**PHONE, "mcpu": "cortex-a76"}}
    assert checks(**phone)[0].level == "ok"


def test_another_processor_is_not_this_machine() -> None:
    """Found out before a network is trained for it, not when its programs are measured."""
    check = first_failed(tvm_target={**PHONE, "mcpu": "cortex-a76"})
    assert check.wrong_input and "aarch64-linux-android" in check.found
    assert "tracker" in check.cure


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.measuring.place.gpu_model", lambda: None)
    monkeypatch.setattr(doctor, "probe", lambda _: (0, ""))
    target = TargetConfig(tvm_target={"kind": "cuda"})
    assert "nvidia-smi finds none" in first_failed(tvm_target={"kind": "cuda"}).found
    elsewhere = target_checks(0, target, here=False)
    assert all(check.level == "ok" for check in elsewhere), "a cluster may have one"


def test_more_threads_than_cores_that_are_compiled_for() -> None:
    target = {"kind": "llvm", "num-cores": 1}
    assert checks(tvm_target=target, threads=2)[1].level == "warn"
    assert [check.level for check in checks(tvm_target=target, threads=1)] == ["ok", "ok"]


def test_a_key_without_a_tracker_is_told() -> None:
    assert [check.level for check in checks(key="pixel-6")] == ["warn", "ok"]


def test_a_tracker_without_the_key_names_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    known = TrackerSummary((DeviceEntry("pixel", "127.0.0.1", 9090),), {})
    monkeypatch.setattr(tracker_wire, "tracker_summary", lambda *_: known)
    for key, level in (("phone", "fail"), ("pixel", "ok")):
        (check,) = checks(device="tracker", tracker_port=9190, key=key)
        assert check.level == level and not check.wrong_input
        assert level == "ok" or ("pixel" in check.found and "targets[].key" in check.cure)
