"""The builder's process: TVM and its compiler, warm, without torch; a forked child for each build.

Started by ``workers.compiling.builder.Builder``; not a command of its own.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from device_agents.lean_tvm import block_torch
from device_agents.processes import serve


def main() -> None:
    """Import TVM, then answer until the parent closes the stream."""
    block_torch()
    # A forked child has none of its parent's threads: TVM must not have started any.
    os.environ["TVM_NUM_THREADS"] = "1"
    import tvm  # noqa: F401

    import workers.compiling.build  # noqa: F401

    serve({"programs": _programs, "network": _network})


def _programs(payload: dict[str, Any]) -> dict[str, Any]:
    from workers.compiling.serving import run_requested

    jobs = [functools.partial(_build_program, payload["target"], i) for i in payload["items"]]
    return {"results": run_requested(jobs, payload)}


def _network(payload: dict[str, Any]) -> dict[str, Any]:
    from workers.compiling.serving import run_requested

    return {"results": run_requested([functools.partial(_build_network, payload)], payload)}


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
