"""A fleet: all devices of a key that are free, measuring the programs of a batch at the same time.

Each device is asked through a gauge of its own, with a warm process and a session that is kept for
the batches to come. A program whose device is lost is measured by another one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from device_agents.local import DeviceLost
from device_agents.tracker_wire import TrackerUnreachable, tracker_summary
from schemas.config import MeasureConfig
from schemas.table import Comparison, Measurement
from workers.compiling.builder import Library
from workers.measuring.agents import DeviceAddress
from workers.measuring.batch import MOST_LOSSES, Batch
from workers.measuring.device_gauge import DeviceGauge, NoneFree
from workers.measuring.gauge import Answers, Attribution, OutputCheck, ProgramFailed, Question
from workers.measuring.stretches import answers_of, stretches_of

_WAIT_S = 1.0
"""How long a gauge asks for a device before it looks whether there still is something to do."""

Found = TypeVar("Found")


class Fleet:
    """A gauge on the devices of one key of a tracker, at most ``max_devices`` at once."""

    def __init__(self, address: DeviceAddress, config: MeasureConfig, max_devices: int) -> None:
        self.device_model = address.device_model
        self._address = address
        self._config = config
        self._max_devices = max_devices
        self._gauges = [self._new_gauge()]
        self._batch: Batch | None = None
        self._is_closed = False

    @property
    def device_s(self) -> float:
        """Seconds the devices were busy for us, all together."""
        return sum(gauge.device_s for gauge in self._gauges)

    @property
    def pids(self) -> list[int]:
        """Process ids of the measuring processes."""
        return [gauge.pid for gauge in self._gauges if gauge.pid is not None]

    def measure(self, key: str, library: Library) -> Measurement:
        return self._ask_one(lambda gauge: gauge.measure(key, library))

    def measure_all(self, questions: Sequence[Question]) -> Answers:
        gauges = self._gauges_for(len(stretches_of(questions)))
        batch = self._batch = Batch(questions, len(gauges))
        threads = [
            threading.Thread(target=self._serve, args=(gauge, batch), name="gauge", daemon=True)
            for gauge in gauges
        ]
        for thread in threads:
            thread.start()
        try:
            yield from batch.answers()
        finally:
            batch.end()
            for thread in threads:
                thread.join()  # after two questions at most, whose time is limited

    def check(self, key: str, reference: Library, library: Library) -> OutputCheck:
        return self._ask_one(lambda gauge: gauge.check(key, reference, library))

    def compare(
        self, key: str, reference: Path, candidate: Path, input_shape: tuple[int, ...]
    ) -> Comparison:
        return self._ask_one(lambda gauge: gauge.compare(key, reference, candidate, input_shape))

    def attribute(
        self, key: str, network: Path, input_shape: tuple[int, ...]
    ) -> Attribution | None:
        return self._ask_one(lambda gauge: gauge.attribute(key, network, input_shape))

    def run(
        self, key: str, network: Path, images: np.ndarray[Any, Any], batch_size: int
    ) -> np.ndarray[Any, Any]:
        return self._ask_one(
            lambda gauge: gauge.run(key, network, images, batch_size), has_run=True
        )

    def not_asked(self, key: str, reason: str) -> None:
        """The devices have nothing to do."""

    def alone(self) -> AbstractContextManager[None]:
        """A tracker's devices have cores of their own."""
        return nullcontext()

    def release(self) -> None:
        holding = [gauge for gauge in self._gauges if gauge.is_open]
        if holding:
            with ThreadPoolExecutor(len(holding)) as pool:
                list(pool.map(DeviceGauge.release, holding))

    def close(self) -> None:
        self._is_closed = True
        if self._batch is not None:
            self._batch.end(self._closed())
        for gauge in self._gauges:
            gauge.close()

    def _closed(self) -> DeviceLost:
        return DeviceLost(f"the devices {self._address.key!r} were closed")

    def _new_gauge(self) -> DeviceGauge:
        return DeviceGauge(self._address, self._config, None, None)

    def _gauges_for(self, stretches: int) -> list[DeviceGauge]:
        """Gauges for so many stretches: as many as there are devices that we have or that are free.

        At least one, which waits for a device.
        """
        # Not in place: another thread may ask for ``device_s`` meanwhile.
        self._gauges = sorted(self._gauges, key=lambda one: (not one.is_open, one.pid is None))
        held = sum(gauge.is_open for gauge in self._gauges)
        wanted = min(stretches, self._max_devices, max(1, held + self._free_devices()))
        while len(self._gauges) < wanted:
            self._gauges.append(self._new_gauge())
        return self._gauges[:wanted]

    def _cure(self) -> str:
        try:
            tracker_summary(self._address.host, self._address.port)
        except TrackerUnreachable:
            return "start the tracker, or correct targets[].tracker_host and tracker_port"
        return (
            "register a device of the key that targets[].key names, correct targets[].key, or "
            "raise measure.device_wait_s"
        )

    def _free_devices(self) -> int:
        address = self._address
        try:
            return tracker_summary(address.host, address.port).free(address.key)
        except TrackerUnreachable:  # sessions live on without it
            return 0

    def _serve(self, gauge: DeviceGauge, batch: Batch) -> None:
        """Measure stretches of the batch on one device until none is left. Body of a thread."""
        try:
            while self._open(gauge, lambda: batch.is_unfinished):
                stretch = batch.take()
                if stretch is None:
                    break
                answered = 0
                try:
                    for told in answers_of(stretch, gauge.measure):
                        answered += 1
                        for index, answer in told:
                            batch.answer(index, answer)
                        if not batch.is_unfinished:
                            break
                except DeviceLost as loss:
                    batch.give_back(stretch.after(answered), loss)
            batch.leave()
        except DeviceLost as loss:
            batch.leave(loss)
        except BaseException as error:  # a fault of ours: who waits for the answers has to know
            batch.end(error)

    def _ask_one(self, ask: Callable[[DeviceGauge], Found], *, has_run: bool = False) -> Found:
        """Ask the first device that we have, or one that is to be had; another when it is lost.

        ``has_run``: what is asked about has run before, so that losses are none of its doing.
        """
        losses: list[DeviceLost] = []
        while len(losses) < MOST_LOSSES:
            gauge = next((gauge for gauge in self._gauges if gauge.is_open), self._gauges[0])
            if not self._open(gauge, lambda: True):
                raise self._closed()
            try:
                return ask(gauge)
            except DeviceLost as loss:
                if self._is_closed:  # no fault of what was asked about
                    raise self._closed() from loss
                losses.append(loss)
        if has_run:
            raise losses[-1]
        raise ProgramFailed(f"{MOST_LOSSES} devices were lost over it, at last: {losses[-1]}")

    def _open(self, gauge: DeviceGauge, is_wanted: Callable[[], bool]) -> bool:
        """Open a session for as long as it is wanted; whether there is one.

        Raises ``DeviceLost`` when no device was free for ``measure.device_wait_s``.
        """
        deadline = time.monotonic() + self._config.device_wait_s
        while is_wanted() and not self._is_closed:
            left_s = deadline - time.monotonic()
            try:
                gauge.open(min(_WAIT_S, max(left_s, 0.0)))
                return True
            except NoneFree as error:
                if left_s <= _WAIT_S:
                    waited_s = self._config.device_wait_s
                    raise DeviceLost(
                        f"{error} (asked for {waited_s:g} s); {self._cure()}"
                    ) from None
        return False
