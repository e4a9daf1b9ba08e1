"""A ledger that lives as long as its process, for tests and trials."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.states import AnyState
from orchestrator.store.base import Event, Ledger, RunInfo, Standing, repeats
from schemas.config import RunConfig
from schemas.record import WorkRecord
from schemas.table import Program, Sample
from schemas.work import Outcome


class MemoryLedger(Ledger):
    """The contract of ``Ledger``, but for durability."""

    def __init__(self) -> None:
        self._info: RunInfo | None = None
        self._start_id = ""
        self._events: list[Event] = []
        self._standings: dict[str, Standing] = {}
        self._work: dict[str, WorkRecord] = {}
        self._programs: dict[tuple[str, str], Program] = {}
        self._samples: dict[tuple[str, str], list[Sample]] = {}

    def start(self, start_id: str, config: RunConfig, versions: dict[str, str]) -> RunInfo:
        before = self._info
        started = before.started if before else 0
        self._info = RunInfo(
            config=config,
            versions=dict(versions),
            started=started if start_id == self._start_id else started + 1,
            wall_s=before.wall_s if before else 0.0,
        )
        self._start_id = start_id
        return self._info.model_copy(deep=True)

    def info(self) -> RunInfo | None:
        return self._info.model_copy(deep=True) if self._info else None

    def keep_time(self, wall_s: float) -> None:
        if self._info and wall_s > self._info.wall_s:
            self._info = self._info.model_copy(update={"wall_s": wall_s})

    def transition(
        self, target: str, expected: int, state: AnyState, message: str, at: float, wall_s: float
    ) -> int:
        repeated = repeats(self._standings.get(target), target, expected, state)
        if repeated:
            return repeated.sequence
        sequence = len(self._events) + 1
        self._events.append(
            Event(
                sequence=sequence,
                at=at,
                wall_s=wall_s,
                target=target,
                kind=state.kind,
                message=message,
            )
        )
        self._standings[target] = Standing(
            target=target, sequence=sequence, previous=expected, state=state
        )
        self.keep_time(wall_s)
        return sequence

    def standings(self) -> dict[str, Standing]:
        return dict(self._standings)

    def events(self, after: int = 0) -> list[Event]:
        return self._events[after:]

    def add_work(self, *records: WorkRecord) -> int:
        return sum(self._work.setdefault(each.work.key, each) is each for each in records)

    def finished_keys(self) -> set[str]:
        return set(self._work)

    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        return {key: self._work[key].outcome for key in keys if key in self._work}

    def all_work(self) -> list[WorkRecord]:
        return list(self._work.values())

    def programs(self, task_ids: list[str], device_model: str) -> list[Program]:
        return [
            program
            for program in self._programs.values()
            if program.task_id in task_ids and program.device_model == device_model
        ]

    def add_programs(self, programs: Sequence[Program]) -> None:
        for program in programs:
            self._programs.setdefault((program.program_id, program.device_model), program)

    def record_check(self, program: Program) -> None:
        self._programs[(program.program_id, program.device_model)] = program

    def condemned(self) -> list[Program]:
        return [program for program in self._programs.values() if program.is_condemned]

    def samples(self, device_model: str, target: str) -> list[Sample]:
        return list(self._samples.get((device_model, target), ()))

    def keep_samples(self, device_model: str, target: str, samples: Sequence[Sample]) -> None:
        self._samples.setdefault((device_model, target), list(samples))

    def close(self) -> None:
        pass
