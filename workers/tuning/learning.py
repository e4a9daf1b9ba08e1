"""What the cost model of a target learns from, and what it lets other runs learn from.

Models of latency, which policies have, learn from what tasks took in other runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.target import Target

from schemas.base import content_key
from schemas.table import KnownTask, Program, Sample
from workers.compiling.workload import Workload
from workers.protocols import ProgramTable
from workers.tuning.bundle import Bundle
from workers.tuning.cost_model import RecordModel, booster_of, packed
from workers.tuning.search_jobs import FeaturesJob
from workers.tuning.searchers import Searchers


class Learning:
    """Trains the cost model for each round.

    It begins with the samples of other tasks that the table has for it, the same ones after a
    restart, and gives the table a sample of each program it has learned from.
    """

    def __init__(
        self, target: Target, searchers: Searchers, table: ProgramTable, seed: int
    ) -> None:
        self._searchers = searchers
        self._table = table
        self._seed = seed
        self._target = content_key(str(target))
        self._model = RecordModel()
        self._has_begun = False

    def fitted(self, known: Mapping[str, Sequence[Program]], measured_as: str) -> bytes:
        """What the cost model of the records that a round may know predicts with.

        ``known``: task -> programs, all of which ``look_at`` or ``learn`` has seen.
        """
        if not self._has_begun:
            self._model.begin_with(self._table.samples(measured_as, self._target))
            self._has_begun = True
        records = {
            task_id: {program.program_id: program.latency_ms for program in programs}
            for task_id, programs in known.items()
        }
        return booster_of(self._model.fitted(records, self._seed))

    def look_at(
        self, workloads: Mapping[str, Workload], known: Mapping[str, Sequence[Program]]
    ) -> None:
        """Extract the features of those of the programs that ran and were not learned from yet."""
        unknown = {task_id: self._unknown(programs) for task_id, programs in known.items()}
        unknown = {task_id: programs for task_id, programs in unknown.items() if programs}
        jobs = [
            FeaturesJob(
                task_id=task_id,
                module=workloads[task_id].text,
                traces=tuple(program.trace for program in programs),
            )
            for task_id, programs in unknown.items()
        ]
        for programs, features in zip(
            unknown.values(), self._searchers.features(jobs), strict=True
        ):
            ids = [program.program_id for program in programs]
            self.learn(programs, dict(zip(ids, features, strict=True)))

    def learn(self, programs: Sequence[Program], features: Mapping[str, bytes]) -> None:
        """Learn from those of the programs that ran: program -> its packed features."""
        unknown = self._unknown(programs)
        for program in unknown:
            self._model.keep(program.program_id, features[program.program_id])
        samples = [self._sample(program) for program in unknown if self._is_worth_giving(program)]
        if samples:
            self._table.share_samples(samples)

    def _unknown(self, programs: Sequence[Program]) -> list[Program]:
        ran = [program for program in programs if program.measurement is not None]
        return [program for program in ran if not self._model.knows(program.program_id)]

    def tasks_of_others(self, bundle: Bundle, measured_as: str) -> tuple[KnownTask, ...]:
        """What other runs know of tasks that the network does not have."""
        return tuple(self._table.known_tasks(measured_as, self._target, bundle.task_ids))

    def share_tasks(
        self, bundle: Bundle, fastest: Mapping[str, Program | None], measured_as: str
    ) -> None:
        """Let other runs know what the network's tasks take: task -> its fastest program."""
        shapes = {site.task_id: site.output_shape for site in bundle.table.subgraphs}
        known = [
            KnownTask(
                task_id=task.task_id,
                kind=task.kind,
                macs=task.macs,
                output_shape=shapes[task.task_id],
                latency_ms=program.latency_ms,
            )
            for task in bundle.table.tasks
            if (program := fastest.get(task.task_id)) is not None
            and _is_measured(program)
            and program.latency_ms > 0.0
            and task.task_id in shapes
        ]
        if known:
            self._table.share_tasks(measured_as, self._target, known)

    def _is_worth_giving(self, program: Program) -> bool:
        """Whether a device took its latency, and it stores something: else it has no features."""
        return _is_measured(program) and len(self._model.features(program.program_id)) > 0

    def _sample(self, program: Program) -> Sample:
        return Sample(
            task_id=program.task_id,
            program_id=program.program_id,
            device_model=program.device_model,
            target=self._target,
            latency_ms=program.latency_ms,
            features=packed(self._model.features(program.program_id)),
        )


def _is_measured(program: Program) -> bool:
    """Whether a device took its latency."""
    return program.measurement is not None and not program.measurement.simulated
