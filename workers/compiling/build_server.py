"""The builder's process: TVM and its compiler, warm, without torch; a forked child for each build.

Started by ``workers.compiling.builder.Builder``; not a command of its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from device_agents.host_cores import HostCores
from device_agents.lean_tvm import block_torch
from device_agents.processes import serve

_WAIT_S = 600.0


def main() -> None:
    """Import TVM, then answer until the parent closes the stream."""
    block_torch()
    # A forked child has none of its parent's threads: TVM must not have started any.
    os.environ["TVM_NUM_THREADS"] = "1"
    import tvm  # noqa: F401

    import workers.compiling.build  # noqa: F401

    serve({"programs": _programs, "network": _network})


def _programs(payload: dict[str, Any]) -> dict[str, Any]:
    jobs: list[Callable[[], dict[str, Any]]] = [
        functools.partial(_build_program, payload["target"], item) for item in payload["items"]
    ]
    return {"results": _run(jobs, payload)}


def _network(payload: dict[str, Any]) -> dict[str, Any]:
    return {"results": _run([functools.partial(_build_network, payload)], payload)}


def _run(jobs: list[Callable[[], dict[str, Any]]], payload: dict[str, Any]) -> list[dict[str, Any]]:
    from tvm.target import Target

    from workers.compiling.forked import run_forked
    from workers.compiling.intrinsics import load_intrinsics

    load_intrinsics(Target(payload["target"]))  # here, for all children: each would need 0.2 s
    return run_forked(
        jobs,
        timeout_s=payload["timeout_s"],
        wait_s=_WAIT_S,
        parallel=payload["parallel"],
        working=sharing_cores(payload.get("cores")),
        folder=Path(payload["folder"]),
    )


def sharing_cores(cores: list[str] | None) -> Callable[[], AbstractContextManager[None]]:
    """How a child takes the host's cores: folder of the locks, and the cores' name."""
    if cores is None:
        return nullcontext
    lock_dir, name = cores
    return lambda: HostCores(Path(lock_dir), name).working(_WAIT_S)


def _build_program(description: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    from tvm.target import Target

    from workers.compiling.build import build_program, build_whole, load_module

    target = Target(description)
    build = {"program": build_program, "whole": build_whole}[item["form"]]
    arguments = build(load_module(item["module"]), target, Path(item["path"]))
    return {"arguments": arguments}


def _build_network(payload: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    from tvm.target import Target

    from workers.compiling.build import build_network, load_module

    target = Target(payload["target"])
    with np.load(payload["weights"]) as stored:
        weights = {name: stored[name] for name in stored.files}
    programs = [(load_module(module), trace) for module, trace in payload["programs"]]
    build_network(load_module(payload["module"]), target, programs, weights, Path(payload["path"]))
    return {}


if __name__ == "__main__":
    main()
