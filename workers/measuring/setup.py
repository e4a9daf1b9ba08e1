"""From a target's configuration to a device that answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agents.host_cores import HostCores
from device_agents.host_facts import allowed_cores
from device_agents.local import LocalDevice
from device_agents.tracker import TrackerProcess
from schemas.config import MeasureConfig, TargetConfig
from workers.errors import UserError
from workers.measuring.agents import DeviceAddress
from workers.measuring.device_gauge import DeviceGauge
from workers.measuring.fleet import Fleet
from workers.measuring.gauge import Gauge
from workers.measuring.recording import RecordingGauge, ReplayGauge

_CORES = "host"


@dataclass
class Device:
    """A target's device: how to compile for it, how to ask it, and how to end it.

    ``cores`` is the token of host cores it shares with workers; None when it has its own.
    """

    tvm_target: dict[str, Any]
    gauge: Gauge
    cores: HostCores | None
    build_processes: int
    close: Callable[[], None]


def open_device(
    target: TargetConfig, config: MeasureConfig, lock_dir: Path, scratch: Path
) -> Device:
    """Start or find the device. Raises ``UserError``, ``DeviceLost`` or ``TrackerUnreachable``."""
    tvm_target = resolve_target(target)
    builders = max(1, len(allowed_cores()))
    if target.device == "replay":
        replay = ReplayGauge(Path(str(target.recording)).expanduser())
        return Device(tvm_target, replay, None, builders, replay.close)
    if target.device == "tracker":
        address = DeviceAddress(
            target.tracker_host,
            int(target.tracker_port or 0),
            target.key,
            target.threads or None,
            "tracker",
            f"{target.key}-{target.threads or 'all'}t",
        )
        gauge = _recorded(Fleet(address, config, target.max_devices), target)
        return Device(tvm_target, gauge, None, builders, gauge.close)
    tracker = TrackerProcess(log_path=scratch / "tracker.log")
    try:
        workers = allowed_cores() - set(target.cores or ())
        local = LocalDevice(
            target,
            tracker.host,
            tracker.port,
            work_dir=scratch / "device",
            worker_cores=(workers or None) if target.cores else None,
        )
        local.start()
    except ValueError as error:
        tracker.stop()
        raise UserError("targets[]", str(error)) from error
    except BaseException:
        tracker.stop()
        raise
    cores = HostCores(lock_dir, _CORES) if local.shares_host_cores else None
    address = DeviceAddress(
        tracker.host, tracker.port, target.key, local.threads, "local", local.device_model
    )
    gauge = _recorded(DeviceGauge(address, config, cores, _Agent(tracker, local)), target)

    def close() -> None:
        gauge.close()
        local.stop()
        tracker.stop()

    return Device(tvm_target, gauge, cores, builders, close)


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
    """The TVM target as a dictionary; ``host`` is asked of the compiler in a process of its own."""
    if target.tvm_target != "host":
        return dict(target.tvm_target)
    threads = target.threads or len(target.cores or allowed_cores())
    command = [sys.executable, "-m", "device_agents.default_target", str(threads)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if answer.returncode != 0:
        raise UserError(
            "targets[].tvm_target",
            f"this machine's processor could not be found out: {answer.stderr.strip()[-300:]}",
            "give the target as a dictionary",
        )
    description: dict[str, Any] = json.loads(answer.stdout)
    return description


def _recorded(gauge: Gauge, target: TargetConfig) -> Gauge:
    if not target.recording:
        return gauge
    return RecordingGauge(gauge, Path(target.recording).expanduser())
