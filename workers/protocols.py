"""What workers need of others, as interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schemas.table import KnownTask, Program, Sample


class ProgramTable(Protocol):
    """The table's programs: all a worker reads of the ledger, and all it writes to it."""

    def programs(self, task_ids: list[str], device_model: str) -> list[Program]:
        """The programs of these tasks on one device model, those that failed included.

        In the order in which they were added.
        """
        ...

    def add_programs(self, programs: Sequence[Program]) -> None:
        """Store programs; one that is there already stays as it is."""
        ...

    def record_check(self, program: Program) -> None:
        """Replace a stored program by itself with its outputs checked, or watched in a network."""
        ...

    def samples(self, device_model: str, target: str) -> list[Sample]:
        """What the cost model begins with: programs of other tasks, the same at each call."""
        ...

    def share_samples(self, samples: Sequence[Sample]) -> None:
        """Let the cost models of other runs begin with these; all are of stored programs."""
        ...

    def known_tasks(
        self, device_model: str, target: str, without: Sequence[str]
    ) -> list[KnownTask]:
        """What other runs know of other tasks than those in ``without``."""
        ...

    def share_tasks(self, device_model: str, target: str, tasks: Sequence[KnownTask]) -> None:
        """Let other runs know what these tasks take."""
        ...
