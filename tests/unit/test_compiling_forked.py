"""Jobs in forked children: they crash, hang and raise alone, and none is left behind."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from workers.compiling.forked import run_forked

ROOT = Path(__file__).parents[2]
Job = Callable[[], dict[str, Any]]


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    pipes = len(os.listdir("/proc/self/fd"))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before
    assert len(os.listdir("/proc/self/fd")) == pipes


def run(
    *jobs: Job,
    timeout_s: float = 20.0,
    wait_s: float = 20.0,
    parallel: int = 2,
    working: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[dict[str, Any]]:
    return run_forked(
        jobs,
        timeout_s=timeout_s,
        wait_s=wait_s,
        parallel=parallel,
        working=working,
        folder=Path(tempfile.gettempdir()),
    )


def take(seconds: float) -> tuple[float, float]:
    """When a job that takes so long began and ended."""
    began = time.monotonic()
    select.select([], [], [], seconds)
    return began, time.monotonic()


def number(value: int, seconds: float = 0.0) -> Job:
    return lambda: {"value": value, "span": take(seconds)}


def crash() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hang() -> dict[str, Any]:
    while True:
        signal.pause()


def fail() -> dict[str, Any]:
    raise ValueError("first\n\nlast line")


def test_temporary_files_are_gone_with_their_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def writes(then: Job) -> Job:
        def job() -> dict[str, Any]:
            folder = Path(tempfile.mkdtemp())
            (folder / "lib.o").write_text("half of it")
            linker = subprocess.run(["mktemp"], capture_output=True, text=True, check=True)
            assert folder.parent == Path(linker.stdout).parent != tmp_path
            return then()

        return job

    jobs = [writes(then) for then in (crash, hang, fail, number(1))]
    found = run(*jobs, timeout_s=3.0)
    assert ["error" in result for result in found] == [True, True, True, False]
    assert [result.get("unfinished", False) for result in found] == [False, "time", False, False]
    assert list(tmp_path.iterdir()) == []


def test_results_come_in_the_order_of_the_jobs() -> None:
    found = run(number(0, 0.2), number(1), number(2), number(3), parallel=3)
    assert [result["value"] for result in found] == [0, 1, 2, 3]
    assert found[0]["seconds"] >= 0.2


def test_no_jobs_no_results() -> None:
    assert run() == []


def test_a_child_changes_nothing_in_the_parent() -> None:
    state: list[int] = []
    found = run(lambda: {"length": state.append(1) or len(state)}, lambda: {"pid": os.getpid()})  # type: ignore[func-returns-value]
    assert found[0]["length"] == 1 and state == []
    assert found[1]["pid"] != os.getpid()


def test_crash_hang_and_exception_cost_their_own_result_alone() -> None:
    began = time.monotonic()
    found = run(crash, hang, fail, lambda: os._exit(3), number(4), timeout_s=1.0, parallel=5)
    assert time.monotonic() - began < 10
    assert found[0] == {"error": "crashed with SIGSEGV"}
    assert found[1] == {"error": "took longer than 1 s", "unfinished": "time"}
    assert found[2] == {"error": "ValueError: first\nlast line"}
    assert found[3] == {"error": "ended without a result"}
    assert found[4]["value"] == 4


def test_what_the_machine_lacked_says_nothing_of_the_job() -> None:
    def killed() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def lacks(error: Exception) -> Job:
        def job() -> dict[str, Any]:
            raise error

        return job

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    linker = RuntimeError("ld: final link failed: No space left on device")
    found = run(killed, lacks(full), lacks(linker), lacks(MemoryError()), fail)
    assert [result.get("unfinished", False) for result in found] == ["machine"] * 4 + [False]
    assert found[0]["error"].startswith("killed with SIGKILL")


def test_a_process_that_cannot_be_started_costs_its_own_result_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fork, times = os.fork, iter([True, False, False])

    def sometimes() -> int:
        if next(times):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", sometimes)
    pipes = len(os.listdir("/proc/self/fd"))
    found = run(number(1), number(2), number(3))
    assert [result.get("value") for result in found] == [None, 2, 3]
    assert "temporarily unavailable" in found[0]["error"] and found[0]["unfinished"] == "machine"
    assert len(os.listdir("/proc/self/fd")) == pipes and list(tmp_path.iterdir()) == []


def test_where_no_process_can_be_started_jobs_wait_for_those_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, times = os.fork, iter([False, True, True, False, False])

    def sometimes() -> int:
        if next(times):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", sometimes)
    found = run(number(1, 0.3), number(2), number(3), parallel=2)
    assert [result.get("value") for result in found] == [1, 2, 3]


def test_a_result_that_is_no_json_is_the_jobs_failure() -> None:
    (found,) = run(lambda: {"value": object()})
    assert "TypeError" in found["error"]


def test_the_time_limit_counts_from_when_the_child_has_the_cores() -> None:
    gate, opener = os.pipe()

    @contextmanager
    def cores() -> Iterator[None]:
        os.read(gate, 1)
        yield

    timer = threading.Timer(0.6, os.write, (opener, b"12"))
    timer.start()
    found = run(number(1), hang, timeout_s=0.4, working=cores)
    timer.join()
    os.close(gate)
    os.close(opener)
    assert found[0]["value"] == 1
    assert found[1] == {"error": "took longer than 0.4 s", "unfinished": "time"}


def test_waiting_for_the_cores_is_bounded() -> None:
    @contextmanager
    def never() -> Iterator[None]:
        hang()
        yield

    found = run(number(1), number(2), wait_s=0.2, working=never)
    late = {"error": "waited longer than 0.2 s for the host's cores", "unfinished": "machine"}
    assert found == [late] * 2


def test_cores_that_are_refused_say_nothing_of_the_job() -> None:
    @contextmanager
    def refused() -> Iterator[None]:
        raise TimeoutError("held by process 7")
        yield

    told = {"error": "TimeoutError: held by process 7", "unfinished": "machine"}
    assert run(number(1), working=refused) == [told]


def test_no_more_than_so_many_at_once() -> None:
    found = run(*(number(i, 0.5) for i in range(5)), parallel=2)
    spans = [result["span"] for result in found]
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_large_results_come_whole() -> None:
    texts = ["x" * 3_000_000, "é" * 500_000]
    found = run(*(lambda text=text: {"text": text} for text in texts))  # type: ignore[misc]
    assert [result["text"] for result in found] == texts


def test_children_end_with_the_process_that_forked_them(tmp_path: Path) -> None:
    script = (
        "import os, signal; from contextlib import nullcontext; from pathlib import Path; "
        "from workers.compiling.forked import run_forked\n"
        "def hang():\n    print(os.getpid(), flush=True)\n    signal.pause()\n"
        "run_forked([hang], timeout_s=60, wait_s=60, parallel=1, working=nullcontext, "
        f"folder=Path({str(tmp_path)!r}))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
