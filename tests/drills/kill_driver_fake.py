"""Runs the driver again and again, killing it each time; prints what came of it as JSON.

Each start is a forked child, so that a kill costs milliseconds. The one argument is a folder.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import fake_world

from orchestrator.driver import run
from orchestrator.interrupts import Interrupts
from orchestrator.policies.retry import Failure
from orchestrator.states import ALLOWED, AnyState
from orchestrator.store.reader import LEDGER, NoRun, read_run
from orchestrator.store.sqlite import SqliteLedger
from schemas.config import BudgetConfig, RunConfig
from schemas.record import RunRecord, WorkRecord
from schemas.work import Work

LOG = "executed.log"
TARGETS = [{"name": "big"}, {"name": "small"}]
MOST_STARTS = 5


class DyingLedger(SqliteLedger):
    """Kills its process around its writes of transitions and finished work.

    ``die`` says when: right after the first commit, or right before the second one.
    """

    die = ""
    writes = 0

    def transition(
        self, target: str, expected: int, state: AnyState, message: str, at: float, wall_s: float
    ) -> int:
        self._before()
        sequence = super().transition(target, expected, state, message, at, wall_s)
        self._after()
        return sequence

    def add_work(self, *records: WorkRecord) -> int:
        self._before()
        added = super().add_work(*records)
        self._after()
        return added

    def _before(self) -> None:
        if self.die == "before" and self.writes == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def _after(self) -> None:
        self.writes += 1
        if self.die == "after":
            os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """In every state of the first target: first the user stops the run, then the work fails.

    What has happened already is read from the ledger, so that it holds over any kill.
    """

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger

    def wanted(self, then: str) -> bool:
        """Whether the first target's current state has yet to be followed by this one."""
        standing = self.ledger.standings().get("big")
        if standing is None or (standing.state.kind, then) not in ALLOWED:
            return False
        kinds = [event.kind for event in self.ledger.events() if event.target == "big"]
        return (standing.state.kind, then) not in pairwise(kinds)

    def of_work(self, work: Work) -> Failure | None:
        if getattr(work, "target", "big") != "big" or not self.wanted("failed"):
            return None
        return Failure(kind="user_error", message=f"fault in {work.kind}")


def start(folder: Path, config: RunConfig, die: str, with_faults: bool, work_s: float) -> None:
    """One start of the driver, in this process."""
    ledger = DyingLedger(folder / LEDGER)
    ledger.die = die
    faults = Faults(ledger)

    def began(work: Work) -> None:
        with (folder / LOG).open("a") as log:
            log.write(work.key + "\n")

    workers = fake_world.FakeWorkers(
        fault=faults.of_work if with_faults else lambda work: None, began=began, work_s=work_s
    )
    interrupts = Interrupts()
    if with_faults and faults.wanted("cancelled"):
        interrupts.notice()
    run(
        config,
        folder,
        lambda config, folder: (ledger, workers),
        report=lambda line: None,
        interrupts=interrupts,
    )


class Drill:
    """One run folder, started as often as it takes."""

    def __init__(
        self, folder: Path, config: RunConfig, with_faults: bool = False, work_s: float = 0.0
    ) -> None:
        folder.mkdir()
        self.folder, self.config = folder, config
        self.with_faults, self.work_s = with_faults, work_s
        self.kills = self.starts = 0
        self.twice: list[str] = []

    def once(self, die: str = "", kill_after_s: float | None = None) -> bool:
        """One start; whether it was killed. Notes finished work that was executed again."""
        ledger = SqliteLedger(self.folder / LEDGER)
        finished = ledger.finished_keys()
        ledger.close()
        before = len(self.log())
        child = os.fork()
        if not child:
            status = 1
            try:
                start(self.folder, self.config, die, self.with_faults, self.work_s)
                status = 0
            finally:
                os._exit(status)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
            raise RuntimeError(f"a start in {self.folder} went wrong")
        self.starts += 1
        self.kills += os.WIFSIGNALED(status)
        self.twice += [key for key in self.log()[before:] if key in finished]
        return os.WIFSIGNALED(status)

    def finish(self) -> None:
        """Start until every target is done."""
        for _ in range(MOST_STARTS):
            if self.state() == "done":
                return
            self.once()
        raise RuntimeError(f"{self.folder} does not come to an end")

    def state(self) -> str:
        try:
            return self.record().state
        except NoRun:
            return "not begun"

    def record(self) -> RunRecord:
        return read_run(self.folder)

    def log(self) -> list[str]:
        path = self.folder / LOG
        return path.read_text().split() if path.exists() else []

    def result(self) -> dict[str, Any]:
        record = self.record()
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return {
            "state": record.state,
            "starts": self.starts,
            "kills": self.kills,
            "twice": self.twice,
            "decisions": decisions(record),
            "visited": sorted(visited(record)),
            "events": [event.sequence for event in record.events],
            "lines": [json.loads(line)["sequence"] for line in lines],
        }


def decisions(record: RunRecord) -> list[Any]:
    """What the run decided and arrived at, without its times."""
    return [
        [
            target.target,
            target.stopped_by,
            target.final.weights if target.final else None,
            [[s.round, s.candidate.candidate_id, s.accepted, s.reason] for s in target.steps],
        ]
        for target in record.targets
    ]


def visited(record: RunRecord) -> set[tuple[str, str]]:
    """The transitions of all targets."""
    found: set[tuple[str, str]] = set()
    for target in record.targets:
        kinds = [event.state for event in record.events if event.target == target.target]
        found |= set(pairwise(kinds))
    return found


def kill_at_every_write(drill: Drill) -> None:
    """Kill at each write of the ledger, right after it or right before the next, to the end."""
    chance = random.Random(1)
    while drill.once(chance.choice(("after", "before"))) or drill.state() != "done":
        pass


def main(root: Path) -> None:
    wide = fake_world.config(targets=TARGETS, budget={"max_rounds": 40}, compare_uniform=0.5)
    searched = fake_world.config(  # every task of a candidate is searched: none is tuned again
        budget={"max_rounds": 40},
        prune={"policy": "original", "accuracy_floor": 0.5},
        targets=TARGETS[:1],
    )
    ladder = fake_world.config(  # candidates that are neither screened nor compared
        budget={"max_rounds": 40},
        prune={"policy": "uniform", "max_accuracy_drop": 0.2, "min_width_fraction": 0.3},
        targets=TARGETS[:1],
    )
    results: dict[str, Any] = {}
    for name, config in (("wide", wide), ("searched", searched), ("ladder", ladder)):
        calm = Drill(root / f"{name}-calm", config)
        calm.once()
        results[f"{name}-calm"] = calm.result()
        short = config.model_copy(update={"budget": BudgetConfig(max_rounds=2)})
        killed = Drill(root / f"{name}-killed", short, with_faults=True)
        kill_at_every_write(killed)
        killed.config = config  # the finished run is given the rest of its budget
        kill_at_every_write(killed)
        results[f"{name}-killed"] = killed.result()
    work_s, chance = 0.002, random.Random(0)
    timed = Drill(root / "timed", wide, work_s=work_s)
    began = time.monotonic()
    timed.once()
    length_s = time.monotonic() - began
    for number in range(10):
        drill = Drill(root / f"random-{number}", wide, work_s=work_s)
        drill.once(kill_after_s=chance.uniform(0.0, 0.8 * length_s))
        drill.finish()
        results[f"random-{number}"] = drill.result()
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
