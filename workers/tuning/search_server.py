"""The searchers' process: TVM and XGBoost, warm, without torch; a forked child for each job.

Started by ``workers.tuning.searchers.Searchers``; not a command of its own.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from device_agents.lean_tvm import block_torch, unblock_torch
from device_agents.processes import serve


def main() -> None:
    """Import what a search needs, then answer until the parent closes the stream."""
    block_torch()
    # A forked child has none of its parent's threads: nothing here must have started any, and in
    # the children one thread each is what makes a search reproducible.
    os.environ["TVM_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    import tvm  # noqa: F401

    unblock_torch()
    import workers.tuning.search_jobs  # noqa: F401

    serve({"search": _search, "features": _features})


def _search(payload: dict[str, Any]) -> dict[str, Any]:
    from workers.compiling.serving import run_requested

    jobs = [functools.partial(_carry_out, payload, item) for item in payload["items"]]
    return {"results": run_requested(jobs, payload)}


def _features(payload: dict[str, Any]) -> dict[str, Any]:
    from workers.compiling.serving import run_requested

    jobs = [functools.partial(_extract, payload, item) for item in payload["items"]]
    return {"results": run_requested(jobs, payload)}


def _carry_out(payload: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    from workers.compiling.programs import ScheduleSpace
    from workers.tuning.search import target_of
    from workers.tuning.search_jobs import SearchJob, carry_out

    space = ScheduleSpace(target_of(payload["target"]))
    found = carry_out(SearchJob.model_validate(item), space, payload["booster"])
    return {"found": [program.model_dump(mode="json") for program in found]}


def _extract(payload: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    from workers.tuning.search import target_of
    from workers.tuning.search_jobs import FeaturesJob, extract

    features = extract(FeaturesJob.model_validate(item), target_of(payload["target"]))
    return {"found": features.model_dump(mode="json")}


if __name__ == "__main__":
    main()
