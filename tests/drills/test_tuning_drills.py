"""While a network is tuned: its device, or a process that searches, builds or measures for it, is
killed or frozen.

Each strikes once, between two programs or in the middle of a measurement. Tuning goes on and ends
with the number of trials it was asked for; of the programs few fail, and nothing waits for long.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tuning_world
from tuning_world import Table, restarted, tune_work

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from test_device_support import gone, tree, wait_until

from device_agents.local import DeviceLost
from schemas.work import Tuned
from workers.tuning.worker import TuningWorker

pytestmark = pytest.mark.drill

TRIALS = 4
LIMIT_S = 120.0
Attack = Callable[[TuningWorker], list[psutil.Process]]


@pytest.fixture(autouse=True)
def empty_table(table: Table) -> None:
    table.forget()


def inside(worker: TuningWorker) -> Any:
    """The gauge, with the processes it hides."""
    return worker._device.gauge


def killed(pid: int | None) -> list[psutil.Process]:
    assert pid is not None
    processes = tree(pid)
    os.kill(pid, signal.SIGKILL)
    return processes


def kill_server(worker: TuningWorker) -> list[psutil.Process]:
    return killed(inside(worker)._local.local.pid)


def freeze_server(worker: TuningWorker) -> list[psutil.Process]:
    processes = tree(inside(worker)._local.local.pid)
    for process in processes:
        process.suspend()
    return processes


def kill_gauge(worker: TuningWorker) -> list[psutil.Process]:
    return killed(inside(worker)._process.pid)


def kill_builder(worker: TuningWorker) -> list[psutil.Process]:
    """With its forked children, if it is building, as it mostly is between two programs."""
    pid = worker._builder._process.pid
    assert pid is not None
    wait_until(lambda: len(tree(pid)) > 1, seconds=2)
    return killed(pid)


def kill_searchers(worker: TuningWorker) -> list[psutil.Process]:
    return killed(worker._searchers.pid)


def kill_tracker(worker: TuningWorker) -> list[psutil.Process]:
    """The session lives on without it; it is ended, so that the next one needs the tracker."""
    processes = killed(inside(worker)._local.tracker.pid)
    inside(worker).release()
    return processes


def tune(worker: TuningWorker, trials: int = TRIALS) -> tuple[Tuned, float]:
    began = time.monotonic()
    tuned = restarted(worker).tune(tune_work(trials, "conv1"))
    return tuned, time.monotonic() - began


def check(worker: TuningWorker, table: Table, tuned: Tuned, failures: int) -> None:
    programs = table.all_programs()
    failed = [program.error for program in programs if program.measurement is None]
    assert len(programs) == TRIALS
    assert tuned.measured_programs + tuned.failed_programs == TRIALS
    assert len(failed) <= failures and all(failed)
    (entry,) = [entry for entry in tuned.latencies if entry.trials]
    assert entry.program_id is not None and entry.trials == TRIALS
    table.forget()
    assert tune(worker, 1)[0].failed_programs == 0, "what was struck works again"


@pytest.mark.parametrize(
    "attack",
    [kill_server, freeze_server, kill_gauge, kill_tracker, kill_builder, kill_searchers],
)
def test_struck_between_two_programs(worker: TuningWorker, table: Table, attack: Attack) -> None:
    victims: list[psutil.Process] = []

    def strike(programs: int) -> None:
        if programs == 1 and not victims:
            victims.extend(attack(worker))

    table.before_add = strike
    tuned, seconds = tune(worker)
    assert victims and seconds < LIMIT_S
    assert wait_until(lambda: all(map(gone, victims)))
    check(worker, table, tuned, 0)


@pytest.mark.parametrize("attack", [kill_server, freeze_server, kill_gauge])
def test_struck_in_the_middle_of_a_measurement(
    worker: TuningWorker, table: Table, attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[psutil.Process] = []
    process = inside(worker)._process
    call = process.call

    def strike(method: str, *values: Any, **more: Any) -> Any:
        if method == "program" and len(table.all_programs()) == 1 and not victims:
            victims.extend(attack(worker))
        return call(method, *values, **more)

    monkeypatch.setattr(process, "call", strike)
    tuned, seconds = tune(worker)
    assert victims and seconds < LIMIT_S
    assert wait_until(lambda: all(map(gone, victims)))
    check(worker, table, tuned, 1)


def test_a_device_that_never_comes_back(table: Table, tmp_path: Path) -> None:
    worker = tuning_world.worker(tmp_path, table)
    try:

        def strike(programs: int) -> None:
            if programs == 1:
                inside(worker)._local.local._max_lease_s = "nonsense"  # its server refuses this
                kill_server(worker)

        table.before_add = strike
        began = time.monotonic()
        with pytest.raises(
            DeviceLost, match=r"device 'local' did not start in 3 attempts: "
        ) as lost:
            tune(worker)
        assert time.monotonic() - began < LIMIT_S
        assert "\n" not in str(lost.value)
        assert 1 <= len(table.all_programs()) < TRIALS
    finally:
        worker.close()
