"""A real tracker, real device servers, real kernels, on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_device_support import build_all, client, plain_server, wait_until

from device_agents.local import LocalDevice
from device_agents.processes import RemoteFailure, WarmProcess
from device_agents.tracker import TrackerProcess, tracker_summary
from schemas.target import TargetConfig

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_all(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="module")
def tracker() -> Iterator[TrackerProcess]:
    with TrackerProcess() as running:
        yield running


@pytest.fixture(scope="module")
def device(tracker: TrackerProcess) -> Iterator[LocalDevice]:
    with LocalDevice(TargetConfig(key="one"), tracker.host, tracker.port) as started:
        yield started.start()


@pytest.fixture
def caller() -> Iterator[WarmProcess]:
    with client() as process:
        yield process


def request(tracker: TrackerProcess, key: str, **more: Any) -> dict[str, Any]:
    address = {"host": tracker.host, "port": tracker.port}
    return {**address, "key": key, "lease_s": 20, "wait_s": 5.0, **more}


def open_sessions(device: LocalDevice) -> list[Path]:
    return list(device.log_path.parent.glob("cprune-session-*"))


def test_kernel_model_fill_and_canary(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess, libraries: dict[str, Path]
) -> None:
    info = caller.call("open", request(tracker, "one", threads=len(CORES)), timeout_s=20)
    assert info["threads"] == len(CORES) == device.threads and info["cores"] == CORES
    run = {"path": str(libraries["add"]), "size": 1024, "arguments": 3}
    for _ in range(2):  # the second upload must not overwrite the first
        answer = caller.call("run", run, timeout_s=20)
        assert answer["sum"] == 3 * 1024 and len(answer["run_s"]) == 3
        assert all(0 < seconds < 0.1 for seconds in answer["run_s"])
    answer = caller.call("run_model", {"path": str(libraries["model"])}, timeout_s=20)
    assert answer["sum"] == 4 * 8 * 3.0 and len(answer["run_s"]) == 3
    assert caller.call("random_fill", timeout_s=20)["distinct"] > 100
    canary = caller.call("canary", timeout_s=20)
    assert canary["first_ms"] > 0 and 0.1 < canary["ratio"] < 10
    assert open_sessions(device)
    footprint = caller.call("close", timeout_s=20)
    assert not footprint["torch"] and footprint["rss"] < 200 << 20
    assert wait_until(lambda: not open_sessions(device))
    assert wait_until(lambda: tracker_summary(tracker.host, tracker.port).free("one") == 1)


def test_device_facts(device: LocalDevice) -> None:
    assert device.device_model.endswith(f"-{len(CORES)}t")
    assert not device.ensure_alive()


def test_wrong_thread_count_is_refused_and_gives_the_device_back(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess
) -> None:
    with pytest.raises(RemoteFailure, match=r"targets\[\]\.threads") as caught:
        caller.call("open", request(tracker, "one", threads=len(CORES) + 5), timeout_s=20)
    assert caught.value.kind == "WrongThreads"
    caller.call("open", request(tracker, "one"), timeout_s=20)


def test_unknown_key_and_leased_device_are_told_apart(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess
) -> None:
    start = time.monotonic()
    with pytest.raises(RemoteFailure, match="there are: one") as caught:
        caller.call("open", request(tracker, "nobody", wait_s=0.5), timeout_s=20)
    assert caught.value.kind == "NoDevice" and time.monotonic() - start < 5
    with client() as holder:
        holder.call("open", request(tracker, "one"), timeout_s=20)
        with pytest.raises(RemoteFailure, match="all 1 devices with this key are leased"):
            caller.call("open", request(tracker, "one", wait_s=0.5), timeout_s=20)
    caller.call("open", request(tracker, "one"), timeout_s=20)  # the holder died: free again


def test_no_tracker_is_told(caller: WarmProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    query = {"host": "127.0.0.1", "port": port, "key": "one", "lease_s": 5, "wait_s": 0.3}
    with pytest.raises(RemoteFailure, match="no tracker") as caught:
        caller.call("open", query, timeout_s=20)
    assert caught.value.kind == "NoDevice"


def test_strangers_on_the_port_block_nobody(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess
) -> None:
    assert device.port is not None
    strangers = [socket.create_connection(("127.0.0.1", device.port)) for _ in range(70)]
    strangers[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[-2].sendall(b"\x71\xf2\x0f\x00\xff\xff\xff\xff")
    caller.call("open", request(tracker, "one"), timeout_s=20)
    caller.call("close", timeout_s=20)
    for stranger in strangers:
        stranger.close()


def test_client_that_leaves_without_a_word(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess
) -> None:
    caller.call("open", request(tracker, "one"), timeout_s=20)
    caller.stop()
    start = time.monotonic()
    caller.call("open", request(tracker, "one"), timeout_s=20)
    assert time.monotonic() - start < 5


def test_many_sessions_in_one_process(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess
) -> None:
    for _ in range(40):
        caller.call("open", request(tracker, "one"), timeout_s=20)
        caller.call("close", timeout_s=20)


def test_two_devices_under_one_key_at_once_on_masks_of_their_own(
    tracker: TrackerProcess, libraries: dict[str, Path]
) -> None:
    masks = [[CORES[0]], [CORES[-1]]]
    devices = [
        LocalDevice(TargetConfig(key="pair", cores=mask), tracker.host, tracker.port)
        for mask in masks
    ]
    try:
        for started in devices:
            started.start()
        assert devices[0].port != devices[1].port
        with client() as left, client() as right:
            callers = (left, right)
            infos = [
                c.call("open", request(tracker, "pair", threads=1), timeout_s=20) for c in callers
            ]
            assert sorted(info["cores"] for info in infos) == sorted(masks)
            if len(CORES) > 1:
                assert infos[0]["device"] != infos[1]["device"]
            for process in callers:
                run = {"path": str(libraries["add"]), "size": 1024, "arguments": 3}
                assert process.call("run", run, timeout_s=20)["sum"] == 3 * 1024
    finally:
        for started in devices:
            started.stop()
    assert wait_until(lambda: not tracker_summary(tracker.host, tracker.port).lists("pair"))


def test_server_of_another_agent(
    tracker: TrackerProcess, caller: WarmProcess, libraries: dict[str, Path]
) -> None:
    with plain_server(tracker.port, "stock") as port:
        info = caller.call("open", request(tracker, "stock", wait_s=15, threads=1), timeout_s=30)
        assert info == {"device": f"stock@127.0.0.1:{port}", "threads": 1, "cores": []}
        run = {"path": str(libraries["add"]), "size": 1024, "arguments": 3}
        assert caller.call("run", run, timeout_s=20)["sum"] == 3 * 1024
        with pytest.raises(RemoteFailure, match="no canary"):
            caller.call("canary", timeout_s=20)
        caller.call("close", timeout_s=20)


@pytest.mark.parametrize(
    ("fields", "named"), [({"cores": [9999]}, "cores"), ({"threads": 9999}, "threads")]
)
def test_impossible_targets_name_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"targets\[host\]\.{named}"):
        LocalDevice(TargetConfig(**fields), "127.0.0.1", 1)


def test_host_target_is_validated() -> None:
    script = (
        "from device_agents.lean_tvm import block_torch; block_torch(); import json; "
        "from device_agents.default_target import *; from tvm.target import codegen; "
        "a = host_target(3); b = is_valid_mcpu('no-such-cpu'); "
        "codegen.llvm_get_system_cpu = lambda: 'no-such-cpu'; "
        "print(json.dumps([a, is_valid_mcpu(a['mcpu']), b, host_target(None)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    target, valid, invalid, fallback = json.loads(done.stdout)
    assert target["kind"] == "llvm" and target["num-cores"] == 3 and valid and not invalid
    assert fallback["mcpu"] in ("x86-64-v3", "x86-64", "generic")
