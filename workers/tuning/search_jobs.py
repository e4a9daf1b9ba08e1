"""Rounds of search as data: what a process of its own is asked for, and what it finds.

``carry_out`` and ``extract`` are what such a process does with them: functions of their arguments.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer
from tvm.ir import save_json
from tvm.target import Target

from schemas.base import Schema
from schemas.table import Program, Task
from workers.compiling.axes import ChannelAxes
from workers.compiling.build import load_module
from workers.compiling.programs import ScheduleSpace
from workers.compiling.workload import Workload
from workers.tuning.cost_model import extracted, model_of, packed
from workers.tuning.search import Proposal, Search

_Packed = Annotated[
    bytes,
    PlainSerializer(lambda data: b64encode(data).decode(), when_used="json"),
    BeforeValidator(lambda given: b64decode(given) if isinstance(given, str) else given),
]
"""Features as the cost model packs them; in JSON as text."""


class SearchJob(Schema):
    """A round of search of one task: all that its programs follow from, but for the cost model."""

    task: Task
    module: str
    """JSON text of the unscheduled workload."""
    axes: ChannelAxes
    known: tuple[Program, ...]
    """All programs that the round may know, in order."""
    population_size: int
    generations: int
    count: int
    seed: int
    examples: tuple[str, ...]
    """Traces of other tasks whose decisions are tried."""
    only_adapted: bool = False
    """One program with an example's decisions, and no search."""


class FoundProgram(Schema):
    """A program that a round proposes, ready to be built."""

    program_id: str
    trace: str
    module: str
    """JSON text of the scheduled workload."""
    features: _Packed


class FeaturesJob(Schema):
    """Programs of one task, of which the cost model needs the features."""

    task_id: str
    module: str
    traces: tuple[str, ...]


class Features(Schema):
    """The features of each program, packed."""

    packed: tuple[_Packed, ...]


def carry_out(job: SearchJob, space: ScheduleSpace, booster: bytes) -> list[FoundProgram]:
    """The programs of a round; ``booster`` is the cost model's, empty for one that guesses."""
    workload = Workload(job.task, load_module(job.module), job.axes)
    search = Search(space, job.population_size, job.generations)
    if job.only_adapted:
        found = search.propose_adapted(workload, list(job.known), job.seed, job.examples)
    else:
        model = model_of(booster)
        found = search.propose(workload, list(job.known), job.count, job.seed, model, job.examples)
    return _with_features(workload, search, found)


def extract(job: FeaturesJob, target: Target) -> Features:
    """The features of programs that were found earlier, or elsewhere."""
    space, module = ScheduleSpace(target), load_module(job.module)
    context = Search(space, 1, 1).context(job.task_id, module, 1)
    schedules = [space.replay(module, trace) for trace in job.traces]
    return Features(packed=tuple(packed(one) for one in extracted(context, schedules)))


def _with_features(workload: Workload, search: Search, found: list[Proposal]) -> list[FoundProgram]:
    context = search.context(workload.task.task_id, workload.module, 1)
    features = extracted(context, [proposal.schedule for proposal in found])
    return [
        FoundProgram(
            program_id=proposal.program_id,
            trace=proposal.trace,
            module=str(save_json(proposal.schedule.mod)),
            features=packed(rows),
        )
        for proposal, rows in zip(found, features, strict=True)
    ]
