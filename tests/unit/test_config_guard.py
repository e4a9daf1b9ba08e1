"""Which configuration a run may go on with."""

from __future__ import annotations

import fake_world
import pytest

from orchestrator.machine import start
from orchestrator.states import Decision, Ranking, Tuning
from orchestrator.store import config_guard
from orchestrator.store.base import Ledger
from orchestrator.store.memory import MemoryLedger
from schemas.network import Structure
from schemas.record import WorkRecord
from schemas.work import PrepareWork


@pytest.fixture
def ledger() -> Ledger:
    return MemoryLedger()


def record() -> WorkRecord:
    work = PrepareWork()
    outcome = fake_world.outcome_of(work)
    return WorkRecord(work=work, outcome=outcome, finished_at=5.0, seconds=1.0)


def decision() -> Decision:
    return Decision(
        round=1,
        candidate_id="c",
        task_id="t",
        task_name="t",
        groups=("g",),
        structure=Structure(widths={"g": 8}),
        screen_key="s",
        accepted=False,
        reason="slower",
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"run": "renamed", "output": "elsewhere"},
        {
            "targets": [
                {"device": "tracker", "tracker_host": "far", "tracker_port": 1, "max_devices": 2}
            ]
        },
        {"measure": {"answer_timeout_s": 5.0, "device_wait_s": 5.0, "session_timeout_s": 9}},
        {"train": {"timeout_s": 60.0}, "fine_tune": {"max_parallel": 1}},
        {"cluster": {"address": "auto", "worker_cpus": 4}},
    ],
)
def test_what_changes_no_result_may_change(changed: dict[str, object]) -> None:
    here = (
        {"targets": [{"device": "tracker", "tracker_port": 9190}]} if "targets" in changed else {}
    )
    old, new = fake_world.config(**here), fake_world.config(**changed)
    assert old != new
    config_guard.check(old, new, "runs/x")


def test_the_floor_may_change_until_a_candidate_is_decided(ledger: Ledger) -> None:
    old = fake_world.config(prune={"max_accuracy_drop": 0.03})
    new = fake_world.config(prune={"accuracy_floor": 0.5})
    ledger.start("a", old, {})
    first = ledger.transition("host", 0, start("host"), "", 1.0, 0.0)
    ledger.add_work(record())
    second = ledger.transition(
        "host", first, Tuning(target="host", search=fake_world.search()), "", 2.0, 0.0
    )
    assert config_guard.admit(ledger, new, "runs/x") == ""
    decided = fake_world.search().model_copy(update={"decisions": (decision(),)})
    ranking = Ranking(target="host", search=decided)
    ledger.transition("host", second, ranking, "", 3.0, 0.0)
    with pytest.raises(config_guard.ConfigChanged, match=r"prune\.accuracy_floor"):
        config_guard.admit(ledger, new, "runs/x")


def test_before_any_work_is_finished_everything_may_change(ledger: Ledger) -> None:
    old, new = fake_world.config(), fake_world.config(seed=7)
    assert config_guard.admit(ledger, new, "runs/x") == ""
    ledger.start("a", old, {})
    ledger.transition("host", 0, start("host"), "", 1.0, 0.0)
    assert "begins anew" in config_guard.admit(ledger, new, "runs/x")
    assert config_guard.admit(ledger, old, "runs/x") == ""
    ledger.add_work(record())
    with pytest.raises(config_guard.ConfigChanged, match="seed was 0 and is now 7"):
        config_guard.admit(ledger, new, "runs/x")


def test_only_budgets_and_what_is_shared_may_change() -> None:
    old = fake_world.config()
    config_guard.check(old, fake_world.config(budget={"max_rounds": 99}), "runs/x")
    config_guard.check(old, fake_world.config(records={"share": False, "path": "a"}), "runs/x")
    new = fake_world.config(seed=7, targets=[{"name": "host", "threads": 2}])
    with pytest.raises(config_guard.ConfigChanged) as refusal:
        config_guard.check(old, new, "runs/x")
    text = str(refusal.value)
    assert "seed was 0 and is now 7" in text
    assert "targets[0].threads was 0 and is now 2" in text
    assert "budget.max_rounds" not in text
