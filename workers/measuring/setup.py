"""From a target's configuration to a device that answers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agents.host_cores import HostCores
from device_agents.host_facts import (
    allowed_cores,
    gpu_architecture,
    last_level_cache_bytes,
    runs_on,
)
from device_agents.local import LocalDevice
from device_agents.tracker import TrackerProcess
from schemas.config import MeasureConfig
from schemas.target import TargetConfig
from workers.errors import UserError
from workers.measuring.agents import DeviceAddress
from workers.measuring.device_gauge import DeviceGauge
from workers.measuring.fleet import Fleet
from workers.measuring.gauge import Gauge
from workers.measuring.place import LEAST_LIMITS, check_place, needs_host
from workers.measuring.recording import RecordingGauge, ReplayGauge

_CORES = "host"
_RESOLVE_S = 120.0
_USUAL_CACHE_BYTES = 4e6  # of a phone or a board


@dataclass
class Device:
    """A target's device: how to compile for it, how to ask it, and how to end it.

    ``cores`` is the token of host cores it shares with workers; None when it has its own.
    ``cache_bytes`` is the size of its last-level cache.
    """

    tvm_target: dict[str, Any]
    gauge: Gauge
    cache_bytes: float
    cores: HostCores | None
    build_processes: int
    close: Callable[[], None]


def open_device(
    target: TargetConfig, config: MeasureConfig, lock_dir: Path, scratch: Path
) -> Device:
    """Start or find the device. Raises ``UserError``, ``DeviceLost`` or ``TrackerUnreachable``."""
    check_place(target)
    resolved = _Resolving(target)
    try:
        return _opened(target, config, lock_dir, scratch, resolved)
    except BaseException:
        resolved.stop()
        raise


def _opened(
    target: TargetConfig,
    config: MeasureConfig,
    lock_dir: Path,
    scratch: Path,
    resolved: _Resolving,
) -> Device:
    builders = max(1, len(allowed_cores()))
    cache_bytes = _cache_bytes(target, config)
    if target.device == "replay":
        replay = ReplayGauge(Path(str(target.recording)).expanduser())
        return Device(resolved.wait(), replay, cache_bytes, None, builders, replay.close)
    if target.device == "tracker":
        address = DeviceAddress(
            target.tracker_host,
            int(target.tracker_port or 0),
            target.key,
            target.threads or None,
            "tracker",
            f"{target.key}-{target.threads or 'all'}t",
            runs_on(target.tvm_target),
        )
        gauge = _recorded(Fleet(address, config, target.max_devices), target)
        return Device(resolved.wait(), gauge, cache_bytes, None, builders, gauge.close)
    with ExitStack() as started:
        tracker = TrackerProcess(log_path=scratch / "tracker.log")
        started.callback(tracker.stop)
        local = _started(target, tracker, scratch)
        started.callback(local.stop)
        tvm_target = resolved.wait()
        cores = HostCores(lock_dir, _CORES)  # also with a core mask: nothing keeps workers off it
        address = DeviceAddress(
            tracker.host,
            tracker.port,
            target.key,
            local.threads,
            "local",
            local.device_model,
            local.runs_on,
            None if target.cores is None else tuple(target.cores),
        )
        gauge = _recorded(DeviceGauge(address, config, cores, _Agent(tracker, local)), target)
        started.callback(gauge.close)
        return Device(tvm_target, gauge, cache_bytes, cores, builders, started.pop_all().close)


def _started(target: TargetConfig, tracker: TrackerProcess, scratch: Path) -> LocalDevice:
    try:
        return LocalDevice(target, tracker.host, tracker.port, work_dir=scratch / "device").start()
    except ValueError as error:
        raise UserError("targets[]", str(error)) from error


@dataclass
class _Agent:
    """Brings a local device back, and its tracker: without one it cannot be asked for."""

    tracker: TrackerProcess
    local: LocalDevice

    def ensure_alive(self) -> bool:
        if self.tracker.pid is None:
            self.tracker.ensure_alive()
        return self.local.ensure_alive()

    def restart(self) -> None:
        self.tracker.ensure_alive()
        self.local.restart()


def resolve_target(target: TargetConfig) -> dict[str, Any]:
    """The TVM target as a dictionary; ``host`` is asked of the compiler in a process of its own.

    Raises ``UserError`` when the processor cannot be found out.
    """
    return _Resolving(target).wait()


def complete_target(given: dict[str, Any]) -> dict[str, Any]:
    """A target with what a search for an accelerator needs, where it does not say.

    That is this machine's GPU's architecture, and the least limits that devices of the kind have.
    """
    kind = str(given.get("kind"))
    architecture = gpu_architecture() if kind == "cuda" and "arch" not in given else None
    found = {} if architecture is None else {"arch": architecture}
    return {**LEAST_LIMITS.get(kind, {}), **found, **given}


class _Resolving:
    """A target being resolved while other things start."""

    def __init__(self, target: TargetConfig) -> None:
        is_host = target.tvm_target == "host"
        self._given = {} if is_host else complete_target(dict(target.tvm_target))  # type: ignore[arg-type]
        self._asked: subprocess.Popen[str] | None = None
        if is_host or (needs_host(self._given) and target.device == "local"):
            threads = target.threads or len(target.cores or allowed_cores())
            self._asked = subprocess.Popen(
                [sys.executable, "-m", "device_agents.default_target", str(threads)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def wait(self) -> dict[str, Any]:
        """The target. Errors as for ``resolve_target``."""
        if self._asked is None:
            return self._given
        try:
            answer, complaint = self._asked.communicate(timeout=_RESOLVE_S)
        except subprocess.TimeoutExpired:
            answer, complaint = "", f"no answer within {_RESOLVE_S:g} s"
        finally:
            self.stop()
        if not answer.strip():
            raise UserError(
                "targets[].tvm_target",
                f"this machine's processor could not be found out: {complaint.strip()[-300:]}",
                "give the target as a dictionary",
            )
        host: dict[str, Any] = json.loads(answer)
        return {**self._given, "host": host} if self._given else host

    def stop(self) -> None:
        """End the asking."""
        if self._asked is not None and self._asked.poll() is None:
            self._asked.kill()
            self._asked.communicate()


def _cache_bytes(target: TargetConfig, config: MeasureConfig) -> float:
    """Weights beyond these are timed cold; an accelerator's memory cannot be flushed from here."""
    if runs_on(target.tvm_target) != "cpu":
        return math.inf
    if config.cache_mb is not None:
        return 1e6 * config.cache_mb
    own = None if target.device == "tracker" else last_level_cache_bytes()
    return _USUAL_CACHE_BYTES if own is None else own


def _recorded(gauge: Gauge, target: TargetConfig) -> Gauge:
    if not target.recording:
        return gauge
    return RecordingGauge(gauge, Path(target.recording).expanduser())
