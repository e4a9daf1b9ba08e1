"""The ledger of a run that knows the record store.

When the run first asks for the programs of a task on a device model, the store's are copied into
the ledger. That it asked is noted in the same transaction, even where nothing was found: from then
on the run looks at its ledger alone, and decides the same after a restart, whatever other runs have
added. What it measures itself goes into its ledger first, and then into the store. What its cost
models begin with is copied likewise, when the first round of search asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.store import sample_rows
from orchestrator.store.records import RecordStore, RecordsUnusable, conditions_of, store_path
from orchestrator.store.sqlite import SqliteLedger
from schemas.config import RunConfig
from schemas.table import KnownTask, Program, Sample


@dataclass(frozen=True)
class Sharing:
    """What a run shares, and with whom. ``takes`` is off where it only gives.

    ``path`` is None where there is no place for a store, for the reason in ``problem``.
    """

    path: Path | None
    max_bytes: float
    conditions: str
    takes: bool
    problem: str = ""

    def open(self) -> RecordStore:
        """The store. Raises ``RecordsUnusable``."""
        if self.path is None:
            raise RecordsUnusable(self.problem)
        return RecordStore(self.path, self.max_bytes, self.conditions)


def sharing_of(config: RunConfig) -> Sharing | None:
    """How this run shares records; None when it does not.

    The place is found out here, in the driver's environment: an actor may have another one.
    """
    if not config.records.share:
        return None
    # A recording holds the answer to whatever its run asked; a replay may ask nothing else.
    recorded = any(target.recording is not None for target in config.targets)
    path, problem = None, ""
    try:
        path = store_path(config.records)
    except RecordsUnusable as error:
        problem = str(error)
    return Sharing(
        path=path,
        max_bytes=config.records.max_mb * 1e6,
        conditions=conditions_of(config.measure),
        takes=not recorded,
        problem=problem,
    )


class SharingLedger(SqliteLedger):
    """A ledger on a file whose programs are shared with other runs."""

    def __init__(self, path: Path, sharing: Sharing | None) -> None:
        super().__init__(path)
        self._sharing = sharing
        self._store: RecordStore | None = None
        self._remarks: list[str] = []
        if sharing is not None:
            try:
                self._store = sharing.open()
            except RecordsUnusable as error:
                self._do_without(error)

    def programs(self, task_ids: list[str], device_model: str) -> list[Program]:
        self._take_over(task_ids, device_model)
        return super().programs(task_ids, device_model)

    def add_programs(self, programs: Sequence[Program]) -> None:
        super().add_programs(programs)
        self._give(programs)

    def record_check(self, program: Program) -> None:
        super().record_check(program)
        self._give([program])

    def samples(self, device_model: str, target: str) -> list[Sample]:
        with self._errors():
            is_noted = sample_rows.is_noted(self._db, device_model, target)
        if not is_noted:
            found = self._samples_of_others(device_model, target)
            self.keep_samples(device_model, target, found)
        return super().samples(device_model, target)

    def share_samples(self, samples: Sequence[Sample]) -> None:
        if self._store is not None:
            try:
                self._store.keep_samples(samples)
            except RecordsUnusable as error:
                self._do_without(error)

    def known_tasks(
        self, device_model: str, target: str, without: Sequence[str]
    ) -> list[KnownTask]:
        if self._store is None or self._sharing is None or not self._sharing.takes:
            return []
        try:
            return self._store.take_tasks(device_model, target, without)
        except RecordsUnusable as error:
            self._do_without(error)
            return []

    def share_tasks(self, device_model: str, target: str, tasks: Sequence[KnownTask]) -> None:
        if self._store is not None:
            try:
                self._store.keep_tasks(device_model, target, tasks)
            except RecordsUnusable as error:
                self._do_without(error)

    def remarks(self) -> list[str]:
        return list(self._remarks)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        super().close()

    def _take_over(self, task_ids: Sequence[str], device_model: str) -> None:
        """Copy what the store knows of the tasks that were not asked for before."""
        asked = {
            row[0]
            for row in self._among(
                "SELECT task_id FROM asked WHERE device_model = ? AND task_id IN ({})",
                task_ids,
                device_model,
            )
        }
        new = [task_id for task_id in dict.fromkeys(task_ids) if task_id not in asked]
        if not new:
            return
        found: list[Program] = []
        if self._store is not None and self._sharing is not None and self._sharing.takes:
            try:
                found = self._store.take(new, device_model)
            except RecordsUnusable as error:
                self._do_without(error)
        with self._transaction():
            self._insert(found)
            self._db.executemany(
                "INSERT INTO asked VALUES (?, ?) ON CONFLICT DO NOTHING",
                [(task_id, device_model) for task_id in new],
            )

    def _samples_of_others(self, device_model: str, target: str) -> list[Sample]:
        """The store's samples of tasks that this run has not asked for."""
        if self._store is None or self._sharing is None or not self._sharing.takes:
            return []
        own = self._all("SELECT task_id FROM asked WHERE device_model = ?", device_model)
        try:
            return self._store.take_samples(device_model, target, {row[0] for row in own})
        except RecordsUnusable as error:
            self._do_without(error)
            return []

    def _give(self, programs: Sequence[Program]) -> None:
        if self._store is None:
            return
        try:
            self._store.keep(programs)
        except RecordsUnusable as error:
            self._do_without(error)

    def _do_without(self, error: RecordsUnusable) -> None:
        """Share nothing more in this start of the run, and have that said."""
        if self._store is not None:
            self._store.close()
            self._store = None
        self._remarks.append(
            f"warning: {error}; this run loses nothing and goes on without sharing records "
            "(records.share: false does so silently, records.path names another file, "
            "cprune clean --records removes a damaged one)"
        )
