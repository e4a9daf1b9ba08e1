"""Which variants of a transplant are built and measured: the nearest split of the tiles, and what
the cost model expects most of, among more splits and programs with another decision besides."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule import CostModel, MeasureCandidate

from workers.compiling.programs import ScheduleSpace, program_id, trace_text
from workers.compiling.tasks import Workload
from workers.tuning.search import Search

SPLITS, VARIED = 12, 4
"""Splits in the pool, and of those the nearest ones that are varied. Measured:
benchmarks/RESULTS.md, variants of a transplant."""


def likeliest(
    space: ScheduleSpace,
    search: Search,
    workload: Workload,
    trace: str,
    limit: int,
    model: CostModel | None,
) -> list[Schedule]:
    """At most ``limit`` variants of the program ``trace`` on the workload, the nearest one first.

    Without a ``model`` they are the nearest splits. Empty where there is no transplant.
    """
    module, task_id = workload.module, workload.task.task_id
    count = limit if model is None else SPLITS
    nearest = space.transplant(module, workload.axes, trace, count)
    if model is None or limit == 1 or not nearest:
        return nearest[:limit]
    varied = (one for split in nearest[:VARIED] for one in space.varied(module, trace_text(split)))
    pool: dict[str, Schedule] = {}
    for schedule in (*nearest, *varied):
        pool.setdefault(program_id(task_id, trace_text(schedule)), schedule)
    first, *others = pool.values()
    if len(others) < limit:
        return [first, *others]
    candidates = [MeasureCandidate(schedule, args_info=[]) for schedule in others]
    scores = model.predict(search.context(task_id, module, 0), candidates)
    ranked = sorted(range(len(others)), key=lambda index: -scores[index])
    return [first, *(others[index] for index in ranked[: limit - 1])]
