"""What goes wrong with devices: crashes, freezes, kills, a tracker that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from test_device_support import build_all, client, gone, tree, wait_until

from device_agents.local import DeviceLost, LocalDevice
from device_agents.processes import ProcessTimeout, RemoteFailure, WarmProcess
from device_agents.tracker import TrackerProcess, tracker_summary
from device_agents.tracker_wire import TrackerUnreachable
from schemas.target import TargetConfig

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_all(tmp_path_factory.mktemp("libraries"))


@pytest.fixture
def tracker() -> Iterator[TrackerProcess]:
    with TrackerProcess() as running:
        yield running


@pytest.fixture
def device(tracker: TrackerProcess) -> Iterator[LocalDevice]:
    with LocalDevice(TargetConfig(key="one"), tracker.host, tracker.port) as started:
        yield started.start()


@pytest.fixture
def caller() -> Iterator[WarmProcess]:
    with client() as process:
        process.start()
        yield process


def request(tracker: TrackerProcess, **more: Any) -> dict[str, Any]:
    address = {"host": tracker.host, "port": tracker.port}
    return {**address, "key": "one", "lease_s": 30, "wait_s": 8.0, **more}


def check_served(tracker: TrackerProcess, libraries: dict[str, Path]) -> None:
    with client() as process:
        process.call("open", request(tracker), timeout_s=20)
        run = {"path": str(libraries["add"]), "size": 1024, "arguments": 3}
        assert process.call("run", run, timeout_s=20)["sum"] == 3 * 1024


def test_crashing_kernel_and_killed_session(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess, libraries: dict[str, Path]
) -> None:
    caller.call("open", request(tracker), timeout_s=20)
    with pytest.raises(RemoteFailure):
        caller.call("run", {"path": str(libraries["crash"]), "size": 1}, timeout_s=20)
    check_served(tracker, libraries)
    assert "SIGSEGV" in device.log_path.read_text()

    server = device.pid
    assert server is not None
    caller.call("open", request(tracker), timeout_s=20)
    (child,) = psutil.Process(server).children()
    child.kill()
    start = time.monotonic()
    check_served(tracker, libraries)
    assert time.monotonic() - start < 8 and device.pid == server


def test_lease_ends_a_long_kernel(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess, libraries: dict[str, Path]
) -> None:
    caller.call("open", request(tracker, lease_s=1), timeout_s=20)
    start = time.monotonic()
    with pytest.raises(RemoteFailure, match="RPCSessionTimeoutError"):
        caller.call("run", {"path": str(libraries["slow"]), "size": 1}, timeout_s=20)
    assert time.monotonic() - start < 5
    check_served(tracker, libraries)


def test_a_kernel_does_not_outlive_its_client(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess, libraries: dict[str, Path]
) -> None:
    caller.call("open", request(tracker, lease_s=60), timeout_s=20)
    with pytest.raises(ProcessTimeout, match="'run'"):
        caller.call("run", {"path": str(libraries["slow"]), "size": 1}, timeout_s=1.0)
    start = time.monotonic()
    check_served(tracker, libraries)
    assert time.monotonic() - start < 8


def test_frozen_device(
    tracker: TrackerProcess, device: LocalDevice, caller: WarmProcess, libraries: dict[str, Path]
) -> None:
    assert device.pid is not None
    caller.call("open", request(tracker), timeout_s=20)
    frozen = tree(device.pid)
    assert len(frozen) == 2
    for process in frozen:
        process.suspend()
    run = {"path": str(libraries["add"]), "size": 1024, "arguments": 3}
    with pytest.raises(ProcessTimeout, match="'run'"):
        caller.call("run", run, timeout_s=1.0)
    for process in frozen:
        process.kill()
    assert wait_until(lambda: all(gone(process) for process in frozen))
    assert device.ensure_alive()
    check_served(tracker, libraries)

    assert wait_until(lambda: tracker_summary(tracker.host, tracker.port).free("one") == 1)
    frozen = tree(device.pid)
    frozen[0].suspend()  # while idle: the tracker still offers it
    start = time.monotonic()
    with pytest.raises(RemoteFailure, match="frozen") as caught:
        caller.call("open", request(tracker, handshake_s=1.0), timeout_s=20)
    assert caught.value.kind == "DeviceSilent" and time.monotonic() - start < 8
    assert device.ensure_alive()  # it sees that the server is stopped
    assert all(gone(process) for process in frozen)
    check_served(tracker, libraries)


def test_tracker_goes_away_and_comes_back(
    device: LocalDevice, tracker: TrackerProcess, caller: WarmProcess, libraries: dict[str, Path]
) -> None:
    server = device.pid
    caller.call("open", request(tracker), timeout_s=20)
    tracker.stop()
    run = {"path": str(libraries["add"]), "size": 1024, "arguments": 3}
    assert caller.call("run", run, timeout_s=20)["sum"] == 3 * 1024  # the session lives on
    caller.call("close", timeout_s=20)
    with pytest.raises(RemoteFailure, match="no tracker"):
        caller.call("open", request(tracker, wait_s=2.5), timeout_s=20)
    with TrackerProcess(port=tracker.port) as again:
        assert wait_until(lambda: tracker_summary(again.host, again.port).free("one") == 1)
        check_served(again, libraries)
        assert again.pid is not None
        process = psutil.Process(again.pid)
        process.suspend()  # frozen, and then gone
        assert wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        with pytest.raises(TrackerUnreachable):
            tracker_summary(again.host, again.port, timeout_s=0.5)
        assert not again.alive(timeout_s=0.5)
        assert again.ensure_alive() and not again.ensure_alive()
        assert wait_until(lambda: tracker_summary(again.host, again.port).free("one") == 1)
    assert device.pid == server


def test_device_that_cannot_start(tracker: TrackerProcess, tmp_path: Path) -> None:
    device = LocalDevice(
        TargetConfig(key="one"), tracker.host, tracker.port, work_dir=tmp_path, max_lease_s=5
    )
    device._max_lease_s = "nonsense"  # type: ignore[assignment]  # makes the server refuse
    with pytest.raises(DeviceLost, match=r"3 attempts.*exit code 2.*--max-lease"):
        device.start()
    device.stop()


def test_offer_that_nobody_uses_is_renewed(
    tracker: TrackerProcess, device: LocalDevice, libraries: dict[str, Path]
) -> None:
    from device_agents.tracker_wire import REQUEST, TrackerConnection

    with TrackerConnection(tracker.host, tracker.port, 5) as connection:
        connection.ask([REQUEST, "one", "", 1], time.monotonic() + 5)
    assert wait_until(lambda: tracker_summary(tracker.host, tracker.port).free("one") == 1)
    check_served(tracker, libraries)


def test_nothing_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "integration")!r}]
from test_device_support import client
from device_agents.local import LocalDevice
from device_agents.tracker import TrackerProcess
from schemas.target import TargetConfig
tracker = TrackerProcess()
folder = Path({str(tmp_path)!r})
device = LocalDevice(TargetConfig(key="one"), tracker.host, tracker.port, work_dir=folder)
device.start()
process = client()
process.call("open", dict(host=tracker.host, port=tracker.port, key="one", lease_s=600, wait_s=5),
             timeout_s=20)
print("ready", flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    family = tree(parent.pid)
    assert len(family) == 5  # itself, tracker, server, session, client
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: all(gone(process) for process in family), seconds=10)
