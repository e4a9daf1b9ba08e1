"""Stands for ``workers.ray_entry`` in the fake world. Runs in Ray's worker processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import fake_world
from pydantic import TypeAdapter

from schemas.table import Program
from schemas.work import Work
from workers.context import RunContext
from workers.errors import UserError
from workers.protocols import ProgramTable

_WORK: TypeAdapter[Work] = TypeAdapter(Work)


def run_training(work_json: str, context_json: str) -> list[str]:
    context = RunContext.model_validate_json(context_json)
    if context.config.seed == 13:
        raise UserError("data.root", "there is no folder of that name", "name another")
    return [fake_world.outcome_of(_WORK.validate_json(work_json)).model_dump_json()]


class TuningActor:
    """Dies once, at its first comparison."""

    def __init__(self, context_json: str, target_name: str, table: ProgramTable) -> None:
        self.context = RunContext.model_validate_json(context_json)
        self.target_name = target_name
        self.table = table

    def run(self, works_json: Sequence[str]) -> list[str]:
        return [self._outcome(_WORK.validate_json(text)) for text in works_json]

    def _outcome(self, work: Work) -> str:
        died = Path(self.context.run_dir) / "died"
        if work.kind == "compare" and not died.exists():
            died.touch()
            os._exit(1)
        program = Program(
            program_id=work.key,
            task_id=work.kind,
            device_model=self.target_name,
            trace="[]",
            source="search",
            measurement=fake_world.measurement(1.0),
        )
        self.table.add_programs([program])
        assert program in self.table.programs([work.kind], self.target_name)
        return fake_world.outcome_of(work).model_dump_json()

    def close(self) -> None:
        pass
