"""Whether a target's device can be where its configuration says; asks no device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_agents.host_facts import gpu_model, runs_on
from schemas.target import TargetConfig
from workers.compiling.linking import foreign_triple
from workers.errors import UserError

LEAST_LIMITS: dict[str, dict[str, Any]] = {
    "cuda": {
        "max_shared_memory_per_block": 49152,
        "max_threads_per_block": 1024,
        "thread_warp_size": 32,
    },
    "opencl": {
        "max_shared_memory_per_block": 32768,
        "max_threads_per_block": 256,
        "thread_warp_size": 1,
    },
}
"""Of an accelerator, by its kind: what devices of it have at least."""


def check_place(target: TargetConfig) -> None:
    """Raise ``UserError`` for what cannot be reached as the target says."""
    field, described = "targets[].tvm_target", target.tvm_target
    place = runs_on(described)
    if target.device == "replay" or isinstance(described, str):
        return
    triple = foreign_triple(described)
    if target.device == "local" and triple is not None:
        raise UserError(
            field,
            f"it is for {triple}, and device: local is this machine, which runs no such programs",
            "reach that device with targets[].device: tracker, or write tvm_target: host",
        )
    if place == "cpu":
        return
    if target.device == "tracker" and needs_host(described):
        raise UserError(
            field,
            f"a {place} target behind a tracker has to name its CPU, which calls the accelerator",
            'add host, as in host: {kind: llvm, mtriple: "aarch64-linux-android"}',
        )
    if target.device == "local" and place != "cuda":
        raise UserError(
            field,
            f"TVM's packages run no {place} on this machine",
            "reach such a device with targets[].device: tracker",
        )
    if target.device == "local" and gpu_model() is None:
        raise UserError(
            field,
            "it names a CUDA GPU, and nvidia-smi finds none on this machine",
            "start the run where there is one, or reach it with targets[].device: tracker",
        )


def needs_host(described: Mapping[str, Any]) -> bool:
    """Whether an accelerator's target has yet to name its CPU."""
    return described.get("kind") in LEAST_LIMITS and "host" not in described
