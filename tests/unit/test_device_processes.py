"""Warm processes: calls, failures, deadlines, deaths. Run as a module, this file is the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from device_agents.processes import (
    ProcessDied,
    ProcessTimeout,
    RemoteFailure,
    WarmProcess,
    serve,
)

HERE = Path(__file__).parent


def warm(*args: str, **options: Any) -> WarmProcess:
    return WarmProcess(Path(__file__).stem, args, env={"PYTHONPATH": str(HERE)}, **options)


@pytest.fixture
def process() -> Iterator[WarmProcess]:
    with warm(start_timeout_s=30) as started:
        yield started


def wait_until_gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def wait_until_there(path: Path, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not path.exists():
        time.sleep(0.02)
    return path.exists()


def test_it_may_be_started_ahead_and_is_not_waited_for(process: WarmProcess) -> None:
    process.prepare()
    pid = process.pid
    assert pid is not None
    process.prepare()
    assert process.call("echo", {"a": 1}, timeout_s=10) == {"a": 1}
    assert process.pid == pid == process.start()


def test_one_that_dies_before_its_first_call_is_started_again(process: WarmProcess) -> None:
    process.prepare()
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until_gone(pid)
    assert process.call("echo", {"a": 1}, timeout_s=10) == {"a": 1}


def test_answers_and_stays_warm(process: WarmProcess) -> None:
    assert process.pid is None
    first = process.call("echo", {"a": [1, "x"]}, timeout_s=10)
    assert first == {"a": [1, "x"]}
    pid = process.pid
    blob = os.urandom(3 << 20)
    assert process.call("echo", {"blob": blob, "n": 1}, timeout_s=10) == {"blob": blob, "n": 1}
    assert process.pid == pid


def test_failures_keep_the_process(process: WarmProcess) -> None:
    with pytest.raises(RemoteFailure, match="bad width 7") as caught:
        process.call("fail", {"message": "bad width 7"}, timeout_s=10)
    assert caught.value.kind == "ValueError" and "_fail" in caught.value.trace
    pid = process.pid
    with pytest.raises(RemoteFailure, match="no method"):
        process.call("nonsense", timeout_s=10)
    with pytest.raises(RemoteFailure, match="not JSON serializable"):
        process.call("unanswerable", timeout_s=10)
    with pytest.raises(TypeError):
        process.call("echo", {"a": object()}, timeout_s=10)
    assert process.call("echo", {"a": 1}, timeout_s=10) == {"a": 1}
    assert process.pid == pid


def test_deadline_kills_the_tree_and_the_next_call_restarts(process: WarmProcess) -> None:
    child = process.call("spawn", timeout_s=10)["pid"]
    pid = process.pid
    start = time.monotonic()
    with pytest.raises(ProcessTimeout, match="'sleep'"):
        process.call("sleep", timeout_s=0.3)
    assert time.monotonic() - start < 5.0
    assert pid is not None and wait_until_gone(pid) and wait_until_gone(child)
    assert process.call("echo", {}, timeout_s=10) == {}


def test_stopped_process_meets_the_deadline_also_for_huge_requests(process: WarmProcess) -> None:
    os.kill(process.start(), signal.SIGSTOP)
    with pytest.raises(ProcessTimeout):
        process.call("echo", {"blob": bytes(16 << 20)}, timeout_s=0.3)
    assert process.pid is None


def test_death_is_told_with_its_signal_and_last_words(process: WarmProcess) -> None:
    with pytest.raises(ProcessDied, match=r"(?s)SIGSEGV.*last words"):
        process.call("die", timeout_s=10)
    with pytest.raises(ProcessDied, match="exit code 3"):
        process.call("leave", timeout_s=10)
    assert process.call("echo", {}, timeout_s=10) == {}


def test_a_call_is_made_again_where_the_process_ended(process: WarmProcess, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert process.call_again("leave_once", {"marker": str(marker)}, timeout_s=10) == {"again": 1}
    with pytest.raises(ProcessDied, match="exit code 3"):
        process.call_again("leave", timeout_s=10)


def test_but_not_where_it_was_stopped(process: WarmProcess, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def stop() -> None:
        assert wait_until_there(marker)
        process.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(ProcessDied):
        process.call_again("mark_and_sleep", {"marker": str(marker)}, timeout_s=30)
    stopper.join()
    assert process.pid is None


def test_process_that_will_not_start(tmp_path: Path) -> None:
    with warm("broken") as broken, pytest.raises(ProcessDied, match="refuses to start"):
        broken.call("echo", timeout_s=5)
    with (
        warm("sleepy", start_timeout_s=1.0) as sleepy,
        pytest.raises(ProcessTimeout, match="start"),
    ):
        sleepy.call("echo", timeout_s=5)


def test_huge_output_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with warm(log_path=log) as process:
        process.call("print", {"megabytes": 20}, timeout_s=20)
        process.call("echo", {}, timeout_s=10)
        assert process.tail().endswith("end of output")
        assert log.stat().st_size < 16 << 20


def test_threads_take_turns_and_stop_frees_them(process: WarmProcess) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(process.call("echo", {"n": n}, timeout_s=20)["n"])
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [0, 1, 2, 3]

    def call() -> None:
        with pytest.raises(ProcessDied):
            process.call("sleep", timeout_s=30)
        answers.append("freed")

    caller = threading.Thread(target=call)
    caller.start()
    deadline = time.monotonic() + 10
    while "freed" not in answers and time.monotonic() < deadline:
        process.stop()
        time.sleep(0.05)
    caller.join(10)
    assert answers[-1] == "freed"


def test_started_from_a_thread_that_ends(process: WarmProcess) -> None:
    starter = threading.Thread(target=process.start)
    starter.start()
    starter.join()
    pid = process.pid
    for _ in range(10):
        process.call("echo", {}, timeout_s=10)
    assert process.pid == pid


def test_dies_with_its_parent() -> None:
    script = (
        "import sys, time; from test_device_processes import warm; p = warm(); "
        "print(p.start(), p.call('spawn', timeout_s=10)['pid'], flush=True); time.sleep(60)"
    )
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid, grandchild = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    assert wait_until_gone(pid) and wait_until_gone(grandchild)


def _fail(request: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(request["message"])


def _spawn(_: dict[str, Any]) -> dict[str, Any]:
    from device_agents.children import start_child

    return {"pid": start_child(["sleep", "60"]).pid}


def _sleep(_: dict[str, Any]) -> dict[str, Any]:
    time.sleep(60)
    return {}


def _die(_: dict[str, Any]) -> dict[str, Any]:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def _leave(_: dict[str, Any]) -> dict[str, Any]:
    os._exit(3)


def _leave_once(request: dict[str, Any]) -> dict[str, Any]:
    marker = Path(request["marker"])
    if not marker.exists():
        marker.touch()
        os._exit(3)
    return {"again": 1}


def _mark_and_sleep(request: dict[str, Any]) -> dict[str, Any]:
    Path(request["marker"]).touch()
    time.sleep(60)
    return {}


def _print(request: dict[str, Any]) -> dict[str, Any]:
    for _ in range(request["megabytes"]):
        print("x" * (1 << 20))
        time.sleep(0.02)
    print("end of output", flush=True)
    time.sleep(0.5)  # the caller bounds the log while it waits
    return {}


if __name__ == "__main__":
    if "broken" in sys.argv:
        sys.exit("it refuses to start")
    if "sleepy" in sys.argv:
        time.sleep(60)
    serve(
        {
            "echo": lambda request: request,
            "fail": _fail,
            "unanswerable": lambda _: {"answer": object()},
            "spawn": _spawn,
            "sleep": _sleep,
            "die": _die,
            "leave": _leave,
            "leave_once": _leave_once,
            "mark_and_sleep": _mark_and_sleep,
            "print": _print,
        }
    )
