"""A batch of programs on several real devices under one key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tuning_world
from fleet_world import CONFIG, KEY, Rack, batch, build, devices_of, questions, stretches
from test_device_support import wait_until
from tuning_world import restarted, tune_work

from device_agents.emulated import LATENCY_MS, EmulatedRack
from device_agents.local import DeviceLost
from schemas.table import Measurement
from workers.compiling.builder import Library
from workers.measuring.fleet import Fleet
from workers.measuring.gauge import ProgramFailed
from workers.measuring.recording import RecordingGauge, ReplayGauge


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Library]:
    return build(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="module")
def rack() -> Iterator[Rack]:
    with Rack() as started:
        started.add(2)
        yield started


@pytest.fixture
def fleet(rack: Rack) -> Iterator[Fleet]:
    started = rack.fleet()
    yield started
    started.close()
    assert wait_until(lambda: rack.free() == len(rack.devices))


def test_every_free_device_measures(fleet: Fleet, libraries: dict[str, Library]) -> None:
    answers = batch(fleet, libraries, 6)
    assert sorted(index for index, _ in answers) == list(range(6))
    assert len(devices_of(answers)) == len(fleet.pids) == 2
    assert all(isinstance(answer, Measurement) for _, answer in answers)


def test_stretches_are_measured_at_once_each_on_one_device(
    fleet: Fleet, libraries: dict[str, Library]
) -> None:
    batch(fleet, libraries, 2)  # both gauges have been started
    answers = dict(fleet.measure_all(stretches(libraries, count=2, length=3)))
    first, second = ([(i, answers[i]) for i in range(start, start + 3)] for start in (0, 3))
    assert len(devices_of(first)) == len(devices_of(second)) == 1
    assert devices_of(first) != devices_of(second)


def test_gauges_and_sessions_are_kept(
    rack: Rack, fleet: Fleet, libraries: dict[str, Library]
) -> None:
    list(fleet.measure_all(questions(libraries, *["long"] * 4)))
    processes = sorted(fleet.pids)
    list(fleet.measure_all(questions(libraries, *["long"] * 4)))
    assert sorted(fleet.pids) == processes and rack.free() == 0
    fleet.release()
    assert wait_until(lambda: rack.free() == 2)
    list(fleet.measure_all(questions(libraries, *["long"] * 4)))
    assert sorted(fleet.pids) == processes


def test_a_hanging_program_holds_up_one_device_for_its_own_time(
    rack: Rack, fleet: Fleet, libraries: dict[str, Library]
) -> None:
    answers = list(fleet.measure_all(questions(libraries, "hang", *["long"] * 3)))
    failures = {index: a for index, a in answers if isinstance(a, ProgramFailed)}
    assert list(failures) == [0] and "no answer within 4 s" in str(failures[0])
    assert answers[-1][0] == 0, "the others waited for it"
    fleet.release()
    assert wait_until(lambda: rack.free() == 2), "the hanging program keeps its device"
    assert len(devices_of(batch(fleet, libraries, 4))) == 2


def test_no_more_devices_than_allowed_and_than_programs(
    rack: Rack, libraries: dict[str, Library]
) -> None:
    fleet = rack.fleet(max_devices=1)
    assert len(devices_of(batch(fleet, libraries, 3))) == 1
    assert len(fleet.pids) == 1
    fleet.close()
    fleet = rack.fleet()
    assert len(list(fleet.measure_all(questions(libraries, "quick")))) == 1
    assert len(fleet.pids) == 1
    fleet.close()


def test_a_device_that_joins_is_used_from_the_next_batch_on(libraries: dict[str, Library]) -> None:
    with Rack() as rack:
        rack.add()
        fleet = rack.fleet()
        assert len(devices_of(batch(fleet, libraries, 3))) == 1
        rack.add()
        assert len(devices_of(batch(fleet, libraries, 3))) == 2


def test_no_device_at_all_is_told(libraries: dict[str, Library]) -> None:
    with Rack() as rack:
        fleet = rack.fleet(config=CONFIG.model_copy(update={"device_wait_s": 1.5}))
        with pytest.raises(DeviceLost, match=r"no device has registered this key.*asked for 1.5 s"):
            list(fleet.measure_all(questions(libraries, "quick", "quick")))
        with pytest.raises(DeviceLost, match="no device has registered this key"):
            fleet.measure("one", libraries["quick"])
        rack.tracker.stop()
        with pytest.raises(DeviceLost, match=r"refused.*start the tracker"):
            fleet.measure("one", libraries["quick"])


@pytest.mark.slow
def test_a_recording_of_several_devices_repeats_what_was_proposed(
    rack: Rack, tmp_path: Path
) -> None:
    """Whichever device answered first: the second work builds on the records of the first."""
    target = {
        "name": tuning_world.TARGET,
        "tvm_target": {"kind": "llvm", "num-cores": 1},
        "recording": str(tmp_path / "recording.jsonl"),
    }
    tracker = {"device": "tracker", "key": KEY, "tracker_port": rack.tracker.port}
    tune = {"round_size": 6, "population_size": 16, "min_trials_per_task": 1}
    tune |= {"build_timeout_s": 20.0}
    proposed, used = [], []
    for number, device in enumerate([tracker, {"device": "replay"}]):
        table = tuning_world.Table()
        folder = tmp_path / str(number)
        worker = tuning_world.worker(folder, table, targets=[{**target, **device}], tune=tune)
        try:
            for trials in (6, 12):
                restarted(worker).tune(tune_work(trials, "conv1"))
        finally:
            worker.close()
        programs = table.all_programs()
        proposed.append({(p.batch, p.position): p.program_id for p in programs})
        used.append({p.measurement.device for p in programs if p.measurement})
    assert len(proposed[0]) == 12 and proposed[0] == proposed[1]
    assert used[0] == used[1]


def test_what_simulated_devices_answer_says_so(
    rack: Rack, libraries: dict[str, Library], tmp_path: Path
) -> None:
    path = tmp_path / "recording.jsonl"
    simulated = EmulatedRack(rack.tracker.host, rack.tracker.port, "sim", 3, service_s=0.1)
    fleet = rack.fleet(key="sim")
    with simulated:
        asked = questions(libraries, *["hang"] * 9)  # nothing is run
        answers = list(RecordingGauge(fleet, path).measure_all(asked))
        fleet.release()
    found = [answer for _, answer in answers if isinstance(answer, Measurement)]
    assert len(found) == 9 and len(devices_of(answers)) == 3
    for measurement in found:
        assert measurement.device_kind == "simulated" and measurement.simulated
        assert measurement.latency_ms == pytest.approx(LATENCY_MS)
    assert all("simulated" in device for device in devices_of(answers))
    assert all(
        isinstance(answer, Measurement) and answer.simulated
        for _, answer in ReplayGauge(path).measure_all(asked)
    )
