"""What the stored programs of a task tell: the fastest, those nearly as fast, the latency."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.table import Program
from schemas.work import TaskLatency

_NEARLY = 1.5


def as_proposed(programs: list[Program]) -> list[Program]:
    """Batches in the order in which they were begun, each in the order of its trials.

    What is proposed next depends on the order of the records, and must not depend on which device
    was the first to answer.
    """
    begun: dict[str, int] = {}
    for program in programs:
        begun.setdefault(program.batch, len(begun))
    return sorted(programs, key=lambda program: (begun[program.batch], program.position))


def fastest(programs: Iterable[Program]) -> Program | None:
    """The program with the least latency; None when none ran.

    Where programs were watched inside the network, the fastest of those there; unless one is faster
    by itself than all of them, which was found since then.
    """
    ran = [program for program in programs if program.measurement is not None]
    watched = [program for program in ran if program.inside_ms is not None]
    if watched:
        least_ms = min(program.latency_ms for program in watched)
        if not any(program.latency_ms < least_ms for program in ran):
            return min(watched, key=lambda p: (p.inside_ms or 0.0, p.program_id))
    return min(ran, key=lambda program: (program.latency_ms, program.program_id), default=None)


def representatives(programs: list[Program]) -> list[Program]:
    """The fastest program of each vector factor, fastest first.

    Those that take more than ``_NEARLY`` times as long as the fastest are left out.
    """
    best = fastest(programs)
    if best is None:
        return []
    found: dict[int, Program] = {}
    for program in sorted(programs, key=lambda p: (p.latency_ms, p.program_id)):
        near = program.latency_ms <= _NEARLY * best.latency_ms
        if near and program.measurement is not None and program.channel_tiles:
            found.setdefault(program.channel_tiles[-1], program)
    return list(found.values())


def share_of_origin(programs: list[Program], origins: list[Program]) -> float:
    """Latency of a task's fastest program over that of the task it comes from.

    A transplant was measured beside the program it was taken from, which need not be the fastest
    one of its task. Others were measured by themselves, so that the fastest ones by themselves are
    compared: one that was chosen inside the network may be slower alone. 0 where either task has no
    program: then the candidate is refused.
    """
    best, before = fastest(programs), fastest(origins)
    if best is None or before is None:
        return 0.0
    taken = next((p for p in origins if p.program_id == best.parent), None)
    if best.beside_ms is None or taken is None:
        return _least_ms(programs) / _least_ms(origins)
    return best.latency_ms / best.beside_ms * taken.latency_ms / before.latency_ms


def _least_ms(programs: list[Program]) -> float:
    """Of those that ran, the least latency by itself."""
    return min(program.latency_ms for program in programs if program.measurement is not None)


def task_latency(task_id: str, programs: list[Program]) -> TaskLatency:
    """The entry of one task; its latency is 0 only when no program ran."""
    best = fastest(programs)
    inherited = max((program.lineage_trials for program in programs), default=0)
    return TaskLatency(
        task_id=task_id,
        program_id=best.program_id if best else None,
        latency_ms=best.latency_ms if best else 0.0,
        channel_tiles=best.channel_tiles if best else (),
        reduction_tiles=best.reduction_tiles if best else (),
        vector_factors=tuple(program.channel_tiles[-1] for program in representatives(programs)),
        trials=len(programs),
        lineage_trials=len(programs) + inherited,
    )
