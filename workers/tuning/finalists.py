"""Finalists: of a task's fastest programs, the one that is fastest inside the network.

Which program is fastest inside depends on where its neighbours leave their data, which no
measurement of it alone can tell. So the few fastest of each task run inside the whole network: in
the first line-up every task has its fastest program, in the second its second, and so on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from schemas.table import Program
from workers.compiling.trace import uses_threads

THREADS_MATTER_MS = 0.03
"""Programs faster than this may be faster still on one core: starting and joining threads takes 1
to 7 microseconds on two cores of a server, more on the slow cores of a phone."""
TURNS = 3
"""How often each line-up is watched, in turns with the others: devices change their pace."""

_NEARLY = 1.2
_NEARLY_ALONE = 2.5

LineUp = Mapping[str, Program]
"""The program of each task."""


def finalists(programs: Sequence[Program], count: int) -> list[Program]:
    """The at most ``count`` fastest programs by themselves, the fastest first.

    Those that take more than ``_NEARLY`` times as long as the fastest are left out. Of a small task
    the last place is for a program on one core, if there is one that takes at most
    ``_NEARLY_ALONE`` times as long: repeated by itself, a program finds the other threads awake.
    """
    ran = [program for program in programs if program.measurement is not None]
    ran.sort(key=lambda program: (program.latency_ms, program.program_id))
    found = [p for p in ran[:count] if p.latency_ms <= _NEARLY * ran[0].latency_ms]
    if count > 1 and found and found[0].latency_ms < THREADS_MATTER_MS:
        near = [p for p in ran if p.latency_ms <= _NEARLY_ALONE * ran[0].latency_ms]
        alone = next((p for p in near if not uses_threads(p.trace)), None)
        if alone is not None and alone not in found:
            found = [*found[: count - 1], alone]
    return found


def line_ups(stored: Mapping[str, Sequence[Program]], count: int) -> list[dict[str, Program]]:
    """At most ``count`` line-ups; a task with fewer finalists has its fastest in the others.

    Tasks without a program that ran are in none.
    """
    found = {task_id: finalists(programs, count) for task_id, programs in stored.items()}
    found = {task_id: programs for task_id, programs in found.items() if programs}
    most = max((len(programs) for programs in found.values()), default=0)
    return [
        {
            task_id: programs[rank] if rank < len(programs) else programs[0]
            for task_id, programs in found.items()
        }
        for rank in range(most)
    ]


def inside_latencies(
    ups: Sequence[LineUp], watched: Sequence[Sequence[Mapping[str, float]]]
) -> dict[tuple[str, str], float]:
    """Task and program -> milliseconds of a call inside the network.

    ``watched[turn][rank]`` holds what a call of each task took. Within a turn each line-up is
    compared with the first, so that a device's changes of pace between turns cancel out.
    """
    found: dict[tuple[str, str], float] = {}
    for task_id, first in ups[0].items():
        base = [turn[0].get(task_id) for turn in watched]
        if any(ms is None or ms <= 0 for ms in base):
            continue  # it is not called: it only rearranges weights
        usual_ms = statistics.median(ms for ms in base if ms is not None)
        found[task_id, first.program_id] = usual_ms
        for rank, line_up in enumerate(ups):
            program = line_up[task_id]
            if program.program_id != first.program_id:
                shares = [turn[rank][task_id] / turn[0][task_id] for turn in watched]
                share = statistics.median(shares)
                if share > 0:  # below what watching costs, nothing is known
                    found[task_id, program.program_id] = usual_ms * share
    return found
