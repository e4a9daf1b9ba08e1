"""What the cost model of a target learns from, and what it lets other runs learn from.

Models of latency, which policies have, learn from what tasks took in other runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm.s_tir.meta_schedule import CostModel

from schemas.base import content_key
from schemas.table import KnownTask, Program, Sample
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import Workload
from workers.protocols import ProgramTable
from workers.tuning.bundle import Bundle
from workers.tuning.cost_model import RecordModel, packed
from workers.tuning.search import Search


class Learning:
    """Trains the cost model for each round.

    It begins with the samples of other tasks that the table has for it, the same ones after a
    restart, and gives the table a sample of each program it has learned from.
    """

    def __init__(
        self, space: ScheduleSpace, search: Search, table: ProgramTable, seed: int
    ) -> None:
        self._space = space
        self._search = search
        self._table = table
        self._seed = seed
        self._target = content_key(str(space.target))
        self._model = RecordModel()
        self._has_begun = False

    def fitted(
        self, bundle: Bundle, known: dict[str, list[Program]], measured_as: str
    ) -> CostModel:
        """The cost model of the records that a round may know: task -> programs."""
        if not self._has_begun:
            self._model.begin_with(self._table.samples(measured_as, self._target))
            self._has_begun = True
        for task_id, programs in known.items():
            self.learn(bundle.workloads[task_id], programs)
        records = {
            task_id: {program.program_id: program.latency_ms for program in programs}
            for task_id, programs in known.items()
        }
        return self._model.fitted(records, self._seed)

    def learn(self, workload: Workload, programs: list[Program]) -> None:
        """Extract the features of those of the task's programs that ran and are not known yet."""
        ran = [program for program in programs if program.measurement is not None]
        unknown = [program for program in ran if not self._model.knows(program.program_id)]
        if not unknown:
            return
        self._model.add(
            self._search.context(workload.task.task_id, workload.module, 1),
            [(p.program_id, self._space.replay(workload.module, p.trace)) for p in unknown],
        )
        samples = [self._sample(program) for program in unknown if self._is_worth_giving(program)]
        if samples:
            self._table.share_samples(samples)

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
