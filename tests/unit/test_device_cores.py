"""The token of the host's cores, among processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agents.host_cores import CoresBusy, HostCores

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from device_agents.host_cores import HostCores
cores = HostCores(Path(sys.argv[2]), "host")
how = sys.argv[3]
if how == "loop":
    print("holds", flush=True)
    while True:
        with cores.working(30):
            time.sleep(0.01)
with getattr(cores, how)(10):
    print("holds", flush=True)
    sys.stdin.readline()
"""

Holder = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def cores(tmp_path: Path) -> HostCores:
    return HostCores(tmp_path, "host")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    started: list[subprocess.Popen[str]] = []

    def start(how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(ROOT), str(tmp_path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_workers_share_and_measurers_wait(cores: HostCores, holder: Holder) -> None:
    worker = holder("working")
    with cores.working(5):
        pass
    with pytest.raises(CoresBusy, match=f"process {worker.pid}"), cores.measuring(0.1):
        pass
    assert cores.holders() == [worker.pid]
    worker.communicate("\n", timeout=10)
    with cores.measuring(5):
        pass


def test_measurer_is_alone(cores: HostCores, holder: Holder) -> None:
    measurer = holder("measuring")
    for token in (cores.measuring, cores.working):
        start = time.monotonic()
        with pytest.raises(CoresBusy, match=f"process {measurer.pid}"), token(0.1):
            pass
        assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("how", ["measuring", "working"])
def test_killed_holder_gives_the_token_back(cores: HostCores, holder: Holder, how: str) -> None:
    victim = holder(how)
    victim.kill()
    with cores.measuring(5):
        pass


def test_measurer_is_not_starved_by_workers(cores: HostCores, holder: Holder) -> None:
    holder("loop")
    holder("loop")
    waits = []
    for _ in range(5):
        start = time.monotonic()
        with cores.measuring(10):
            waits.append(time.monotonic() - start)
    assert max(waits) < 3.0


def test_waiting_measurer_stops_new_workers(cores: HostCores, holder: Holder) -> None:
    worker = holder("working")
    got = threading.Event()

    def measure() -> None:
        with cores.measuring(20):
            got.set()

    thread = threading.Thread(target=measure)
    thread.start()
    deadline = time.monotonic() + 10
    refused = False
    while not refused and time.monotonic() < deadline:
        try:
            with cores.working(0.02):
                time.sleep(0.005)
        except CoresBusy:
            refused = True
    assert refused and not got.is_set()
    worker.communicate("\n", timeout=10)
    thread.join(10)
    assert got.is_set()
    with cores.working(5):
        pass


def test_tokens_do_not_nest(cores: HostCores) -> None:
    with cores.working(1):
        with pytest.raises(RuntimeError, match="already"), cores.measuring(1):
            pass
    with cores.measuring(1):
        pass
