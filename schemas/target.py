"""The configuration of a target: a kind of device, and where it is found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from schemas.section import Section


class TargetConfig(Section):
    """One kind of device to compile for and measure on."""

    name: str = Field(
        default="host",
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="Name of the target in reports, and of its folder below export.",
    )
    device: Literal["local", "tracker", "replay"] = Field(
        default="local",
        description="local: a device server started on this machine. tracker: devices that other "
        "agents registered. replay: answers from a recording, labelled so in every result.",
    )
    tvm_target: dict[str, JsonValue] | Literal["host"] = Field(
        default="host",
        description="A TVM target as a dictionary, or host for this machine's CPU. {kind: cuda} is "
        "this machine's GPU.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="Threads that the network computes with; 0 means all cores of the device.",
    )
    cores: list[Annotated[int, Field(ge=0, strict=True)]] | None = Field(
        default=None,
        min_length=1,
        description="Core mask of a local device; without it all cores.",
    )
    key: str = Field(
        default="local",
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="Key under which devices of this kind are registered with the tracker.",
    )
    tracker_host: str = Field(default="127.0.0.1", description="Machine that the tracker is on.")
    tracker_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of the tracker; required for device: tracker.",
    )
    max_devices: int = Field(
        default=32,
        ge=1,
        description="tracker: most devices of the key that measure at once, of those that are "
        "free; no more than the programs of a batch (tune.round_size times tune.rounds_at_once).",
    )
    recording: str | None = Field(
        default=None,
        description="local and tracker: a file to record answers to. replay: the file to answer "
        "from.",
    )

    @field_validator("cores")
    @classmethod
    def _distinct_cores(cls, value: list[int] | None) -> list[int] | None:
        repeated = {core for core in value or () if (value or []).count(core) > 1}
        if repeated:
            raise ValueError(f"core {min(repeated)} is named more than once; name each core once")
        return value

    @model_validator(mode="after")
    def _complete(self) -> TargetConfig:
        if self.device == "tracker" and self.tracker_port is None:
            raise ValueError("targets[].tracker_port is required for device: tracker")
        if self.device == "tracker" and self.cores is not None:
            raise ValueError(
                "targets[].cores is for device: local; behind a tracker the device's own server "
                "says which cores it has"
            )
        if self.device == "replay" and self.recording is None:
            raise ValueError("targets[].recording is required for device: replay")
        if self.device == "local":
            for name in ("tracker_host", "tracker_port", "max_devices"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"targets[].{name} is for device: tracker, and this target's device is "
                        "local, which is this machine; write device: tracker, or leave it out"
                    )
        return self
