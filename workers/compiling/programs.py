"""Programs as schedules: applying traces to workloads, and transplanting them.

The structure of a program lives in its trace. Applied to a workload of other channel counts, with
only the channel tiles re-split around the vector factor, it keeps that structure (CPrune, section
3: pruning that preserves the fastest program's loop structure).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir import Schedule, Trace
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from workers.compiling.axes import ChannelAxes
from workers.compiling.intrinsics import load_intrinsics
from workers.compiling.spaces import space_generator
from workers.compiling.trace import dump_trace, search_part, transplants, without_threads

_TRACES_KEPT = 4096


class ScheduleSpace:
    """The design space of one target: its post-processors, and how traces become schedules."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._cores = int(target.attrs.get("num-cores", 0))
        self._replayed: dict[str, Trace] = {}
        load_intrinsics(target)

    def replay(self, module: IRModule, trace: str) -> Schedule:
        """The schedule of a stored program: the trace as it was, post-processing included."""
        schedule = Schedule(module, debug_mask="none")
        Trace.apply_json_to_schedule(json.loads(trace), schedule)
        self._replayed[trace] = schedule.trace
        if len(self._replayed) > _TRACES_KEPT:
            del self._replayed[next(iter(self._replayed))]
        return schedule

    def replayed_trace(self, module: IRModule, trace: str) -> Trace:
        """The trace of the replayed schedule; a search asks for the same ones round after round."""
        known = self._replayed.get(trace)
        return self.replay(module, trace).trace if known is None else known

    def process(self, module: IRModule, trace: str) -> Schedule | None:
        """Apply a trace's search part and the space's post-processors; None if they refuse it."""
        schedule = Schedule(module, debug_mask="none")
        try:
            Trace.apply_json_to_schedule(json.loads(search_part(trace)), schedule)
            schedule.enter_postproc()
            for postproc in self._postprocs(module):
                if not postproc.apply(schedule):
                    return None
        except (RuntimeError, ValueError, TypeError):  # a ScheduleError is a RuntimeError
            return None
        return schedule

    def on_one_core(self, module: IRModule, trace: str) -> Schedule | None:
        """The same program with no loop run in parallel; None if none was, or none can be had."""
        text = None if self._cores == 1 else without_threads(trace)
        return None if text is None else self.process(module, text)

    def transplant(
        self, module: IRModule, axes: ChannelAxes, trace: str, limit: int
    ) -> list[Schedule]:
        """The parent's trace on ``module``, its channel tiles re-split; likeliest fast first."""
        if axes.block is None:
            unchanged = self.process(module, trace)
            return [unchanged] if unchanged is not None else []
        spatial = frozenset(range(len(axes.extents))) - frozenset(axes.reductions)
        texts = transplants(trace, axes.block, axes.extents, spatial, 2 * limit)
        found: dict[str, Schedule] = {}
        for text in texts:
            schedule = self.process(module, text)
            if schedule is not None:
                # TVM moves a place that is none to one that is, perhaps another variant's.
                found.setdefault(search_part(trace_text(schedule)), schedule)
            if len(found) == limit:
                break
        return list(found.values())

    def _postprocs(self, module: IRModule) -> list[Any]:
        context = ms.TuneContext(
            mod=module,
            target=self.target,
            space_generator=space_generator(module),
            num_threads=1,
        )
        return list(context.space_generator.postprocs)


def trace_text(schedule: Schedule) -> str:
    """The JSON text of a schedule's trace."""
    return dump_trace(schedule.trace)


def program_id(task_id: str, trace: str) -> str:
    """sha256 of task and search part: post-processing follows from those."""
    return hashlib.sha256(f"{task_id}\n{search_part(trace)}".encode()).hexdigest()
