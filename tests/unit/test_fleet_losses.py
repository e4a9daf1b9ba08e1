"""What a fleet says when every device that it asks is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.local import DeviceLost
from schemas.config import MeasureConfig
from workers.compiling.builder import Library
from workers.measuring.agents import DeviceAddress
from workers.measuring.batch import MOST_LOSSES
from workers.measuring.fleet import Fleet
from workers.measuring.gauge import ProgramFailed


class Lossy:
    """A device that is lost over everything it is asked."""

    is_open = True
    pid = None
    device_s = 0.0

    def __init__(self) -> None:
        self.asked = 0

    def open(self, wait_s: float) -> None:
        """There is always one more of its key."""

    def _lose(self, *_: Any) -> Any:
        self.asked += 1
        raise DeviceLost("gone")

    measure = check = run = _lose

    def close(self) -> None:
        """Nothing is open."""


def measure(fleet: Fleet) -> object:
    return fleet.measure("key", Library(Path("program.so")))


def run(fleet: Fleet) -> object:
    return fleet.run("key", Path("network.so"), np.zeros((1, 3, 4, 4), "float32"), 1)


@pytest.mark.parametrize(("ask", "error"), [(measure, ProgramFailed), (run, DeviceLost)])
def test_a_program_has_failed_and_what_has_run_before_has_not(
    ask: Callable[[Fleet], object], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge: Any = Lossy()
    monkeypatch.setattr(Fleet, "_new_gauge", lambda _: gauge)
    address = DeviceAddress("127.0.0.1", 9190, "pixel", 2, "tracker", "phone")
    with pytest.raises(error, match="gone"):
        ask(Fleet(address, MeasureConfig(), 1))
    assert gauge.asked == MOST_LOSSES


@pytest.mark.parametrize("ask", [measure, run])
def test_what_was_asked_when_the_fleet_was_closed_has_not_failed(
    ask: Callable[[Fleet], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing(Lossy):
        def _lose(self, *_: Any) -> Any:
            fleet.close()
            super()._lose()

        measure = run = _lose

    gauge: Any = Closing()
    monkeypatch.setattr(Fleet, "_new_gauge", lambda _: gauge)
    address = DeviceAddress("127.0.0.1", 9190, "pixel", 2, "tracker", "phone")
    fleet = Fleet(address, MeasureConfig(), 1)
    with pytest.raises(DeviceLost, match="were closed"):
        ask(fleet)
    assert gauge.asked == 1
    with pytest.raises(DeviceLost, match="were closed"):
        ask(fleet)
    assert gauge.asked == 1, "once closed it asks none"
