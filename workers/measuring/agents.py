"""Where devices are to be had, and who brings one of this machine back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class DeviceAddress:
    """Where the devices of a key are to be had."""

    host: str
    port: int
    key: str
    threads: int | None
    kind: Literal["local", "tracker"]
    device_model: str
    runs_on: str = "cpu"
    """Where programs run there: cpu, or an accelerator's kind (cuda, opencl)."""
    cores: tuple[int, ...] | None = None
    """Of a local device: those it has to run on; None does not check."""


class LocalAgent(Protocol):
    """What brings a device of this machine back."""

    def ensure_alive(self) -> bool:
        """Start what has died; whether the device was started. Raises ``DeviceLost``."""
        ...

    def restart(self) -> None:
        """End the device and start it again. Raises ``DeviceLost``."""
        ...
