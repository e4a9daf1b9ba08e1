"""Real device servers under one key, a fleet that asks them, and programs that take a while."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from device_agents.local import LocalDevice
from device_agents.tracker import TrackerProcess
from device_agents.tracker_wire import tracker_summary
from schemas.config import MeasureConfig
from schemas.table import Measurement
from schemas.target import TargetConfig
from workers.compiling.builder import Library
from workers.measuring.agents import DeviceAddress
from workers.measuring.fleet import Fleet
from workers.measuring.gauge import Answer, Question

KEY = "rack"
CORES = sorted(os.sched_getaffinity(0))
MASKS = ([CORES[0]], [CORES[-1]], [CORES[0], CORES[-1]])
"""Core masks, by which devices on one machine tell themselves apart."""

CONFIG = MeasureConfig(
    program_repeats=1, program_min_repeat_ms=0, answer_timeout_s=4.0, device_wait_s=6.0
)


def build(folder: Path) -> dict[str, Library]:
    """Programs: ``quick``; ``long``, which takes a third of a second; ``hang``; ``crash``."""
    import tvm
    from tvm import te

    calls = {"quick": ("abs", 1), "long": ("usleep", 300_000), "hang": ("sleep", 60)}
    calls["crash"] = ("raise", 11)
    libraries = {}
    for name, (function, argument) in calls.items():
        a = te.placeholder((1,), name="a")
        call = tvm.tirx.Evaluate(tvm.tirx.call_extern("int32", function, argument))
        c = te.extern((1,), [a], lambda i, o, call=call: call, name="c")
        program = te.create_prim_func([a, c]).with_attr("global_symbol", "main")
        path = folder / f"{name}.so"
        tvm.compile(program, target=tvm.target.Target({"kind": "llvm"})).export_library(str(path))
        libraries[name] = Library(path, (("float32", (1,)),) * 2)
    return libraries


@dataclass
class Rack:
    """A tracker, devices under one key, and whoever asks them; all end with it."""

    devices: list[LocalDevice] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.tracker = self.stack.enter_context(TrackerProcess())

    def __enter__(self) -> Rack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, count: int = 1) -> None:
        """Start more devices."""
        for _ in range(count):
            target = TargetConfig(key=KEY, cores=MASKS[len(self.devices)])
            device = LocalDevice(target, self.tracker.host, self.tracker.port)
            self.devices.append(self.stack.enter_context(device).start())

    def fleet(self, max_devices: int = 32, config: MeasureConfig = CONFIG, key: str = KEY) -> Fleet:
        """A fleet of the devices under a key."""
        tracker = self.tracker
        address = DeviceAddress(tracker.host, tracker.port, key, None, "tracker", f"{key}-1t")
        fleet = Fleet(address, config, max_devices)
        self.stack.callback(fleet.close)
        return fleet

    def free(self) -> int:
        """Devices that the tracker offers."""
        return tracker_summary(self.tracker.host, self.tracker.port).free(KEY)


def questions(libraries: dict[str, Library], *names: str) -> list[Question]:
    """A question for each name."""
    return [Question(f"{number}", libraries[name]) for number, name in enumerate(names)]


def stretches(libraries: dict[str, Library], count: int, length: int) -> list[Question]:
    """Long programs, so many stretches of them."""
    numbers = [number for number in range(count) for _ in range(length)]
    return [Question(f"{n}", libraries["long"], number) for n, number in enumerate(numbers)]


def batch(fleet: Fleet, libraries: dict[str, Library], count: int) -> list[tuple[int, Answer]]:
    """Answers to ``count`` long programs from a fleet whose gauges have all been started.

    They start within the first batch, whose programs others may have measured before.
    """
    for _ in range(2):
        answers = list(fleet.measure_all(questions(libraries, *["long"] * count)))
    return answers


def devices_of(answers: Sequence[tuple[int, Answer]]) -> list[str]:
    """The devices that answered, each once."""
    return sorted({a.device for _, a in answers if isinstance(a, Measurement)})
