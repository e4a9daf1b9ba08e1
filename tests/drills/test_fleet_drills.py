"""Devices of a rack are killed and frozen while a batch is measured; the batch is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from fleet_world import Rack, batch, build, devices_of, questions, stretches
from test_device_support import gone, tree, wait_until

from device_agents.local import DeviceLost, LocalDevice
from schemas.table import Measurement
from workers.compiling.builder import Library

pytestmark = pytest.mark.drill

PROGRAMS = 9


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Library]:
    return build(tmp_path_factory.mktemp("libraries"))


def kill(device: LocalDevice) -> None:
    assert device.pid is not None
    family = tree(device.pid)
    family[0].kill()
    assert wait_until(lambda: all(map(gone, family)))


def freeze(device: LocalDevice) -> None:
    assert device.pid is not None
    for process in tree(device.pid):
        process.suspend()


def mask_of(device: str) -> list[int]:
    """The cores of a device, from what it calls itself (``boot/key/0-1``)."""
    cores = device.rsplit("/", 1)[-1].replace("-", ",").split(",")
    return sorted({int(core) for core in cores})


def test_a_batch_outlives_a_killed_and_a_frozen_device(libraries: dict[str, Library]) -> None:
    with Rack() as rack:
        rack.add(3)
        fleet = rack.fleet()
        assert len(devices_of(batch(fleet, libraries, 6))) == 3
        answers = []
        for index, answer in fleet.measure_all(questions(libraries, *["long"] * PROGRAMS)):
            answers.append((index, answer))
            if len(answers) == 1:  # the two others are in the middle of a program
                assert isinstance(answer, Measurement)
                others = [d for d in rack.devices if sorted(d.cores) != mask_of(answer.device)]
                assert len(others) == 2
                kill(others[0])
                freeze(others[1])
        assert sorted(index for index, _ in answers) == list(range(PROGRAMS))
        assert all(isinstance(answer, Measurement) for _, answer in answers)

        for device in others:
            device.ensure_alive()
        assert wait_until(lambda: rack.free() == 2)
        assert len(devices_of(batch(fleet, libraries, 6))) == 3, "those that came back are used"


def test_a_stretch_whose_device_is_killed_begins_anew_on_another(
    libraries: dict[str, Library],
) -> None:
    with Rack() as rack:
        rack.add(2)
        fleet = rack.fleet(max_devices=1)
        answers = []
        for index, answer in fleet.measure_all(stretches(libraries, count=1, length=4)):
            answers.append((index, answer))
            if len(answers) == 2:  # it is in the middle of the third
                assert isinstance(answer, Measurement)
                (own,) = (d for d in rack.devices if sorted(d.cores) == mask_of(answer.device))
                kill(own)
        assert [index for index, _ in answers] == [0, 1, 0, 2, 3]
        before, after = devices_of(answers[:2]), devices_of(answers[2:])
        assert len(before) == len(after) == 1 and before != after


def test_when_no_device_is_left_that_is_told(libraries: dict[str, Library]) -> None:
    with Rack() as rack:
        rack.add(2)
        fleet = rack.fleet()
        batch(fleet, libraries, 4)
        answers = []
        with pytest.raises(DeviceLost, match="no device has registered this key"):
            for index, answer in fleet.measure_all(questions(libraries, *["long"] * PROGRAMS)):
                answers.append((index, answer))
                if len(answers) == 1:
                    for device in rack.devices:
                        kill(device)
        assert 1 <= len(answers) < PROGRAMS
        assert all(isinstance(answer, Measurement) for _, answer in answers)


def test_a_killed_gauge_costs_one_program_at_most(libraries: dict[str, Library]) -> None:
    with Rack() as rack:
        rack.add(2)
        fleet = rack.fleet()
        batch(fleet, libraries, 4)
        answers = []
        for index, answer in fleet.measure_all(questions(libraries, *["long"] * PROGRAMS)):
            answers.append((index, answer))
            if len(answers) == 1:
                psutil.Process(fleet.pids[0]).kill()
        assert sorted(index for index, _ in answers) == list(range(PROGRAMS))
        assert sum(isinstance(answer, Measurement) for _, answer in answers) >= PROGRAMS - 1
