"""The table actor and the workers in Ray, in a small Ray of this test's own."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_ray_entry
import fake_world
import pytest
import ray
import records_world

import orchestrator.policies.retry as retry
from device_agents.local import DeviceLost
from device_agents.processes import ProcessDied, ProcessTimeout
from device_agents.session import DeviceSilent, NoDevice
from device_agents.tracker_wire import TrackerUnreachable
from orchestrator.driver import run
from orchestrator.machine import start
from orchestrator.ray_workers import sort_failure, training_needs
from orchestrator.store.base import StaleSequence
from orchestrator.store.reader import LEDGER, read_run
from orchestrator.store.sharing import Sharing
from orchestrator.store.sqlite import SqliteLedger
from orchestrator.table_actor import LedgerClient, start_table
from schemas.record import WorkRecord
from schemas.work import PrepareWork, TuneWork
from workers.context import RunContext
from workers.errors import LimitReached, UserError
from workers.ray_entry import TuningActor

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_AUTH_MODE")}
    os.environ["PYTHONPATH"] = f"{TESTS.parent}{os.pathsep}{TESTS}"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 1024 * 1024,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def test_the_table_is_the_ledger_from_afar(tmp_path: Path) -> None:
    client = LedgerClient(start_table(tmp_path / LEDGER))
    config = fake_world.config()
    assert client.info() is None
    assert client.start("a", config, {"ray": "2"}).started == 1
    first = client.transition("host", 0, start("host"), "begins", 1.0, 2.0)
    with pytest.raises(StaleSequence, match="host is at event"):
        client.transition("host", 7, start("host"), "begins", 1.0, 2.0)
    assert client.standings()["host"].sequence == first
    assert [event.message for event in client.events()] == ["begins"]
    work = PrepareWork()
    outcome = fake_world.outcome_of(work)
    record = WorkRecord(work=work, outcome=outcome, finished_at=1.0, seconds=1.0)
    assert client.add_work(record) and not client.add_work(record)
    assert client.finished_keys() == {work.key}
    assert client.outcomes([work.key]) == {work.key: outcome}
    assert client.all_work() == [record]
    client.keep_time(9.0)
    info = client.info()
    assert info is not None and info.wall_s == 9.0
    client.close()
    client.close()
    ledger = SqliteLedger(tmp_path / LEDGER, read_only=True)
    assert ledger.finished_keys() == {work.key}
    ledger.close()


def test_tables_share_records_and_say_when_they_cannot(tmp_path: Path) -> None:
    clients = []
    for name in ("first", "second", "alone"):
        place = tmp_path / "records.sqlite"
        if name == "alone":
            place = tmp_path / "a file" / "records.sqlite"
            place.parent.touch()
        sharing = Sharing(place, 1e9, records_world.CONDITIONS, True)
        clients.append(LedgerClient(start_table(tmp_path / f"{name}.sqlite", sharing)))
    first, second, alone = clients
    for client in (first, alone):
        client.for_workers().add_programs([records_world.program(1)])
    (taken,) = second.for_workers().programs(["task"], "m")
    assert taken.is_shared and second.remarks() == first.remarks() == []
    given = [records_world.sample(number, "another") for number in (2, 3)]
    first.add_programs([records_world.program(number, "another") for number in (2, 3)])
    first.for_workers().share_samples(given)
    assert second.for_workers().samples("m", records_world.TARGET) == given
    second.keep_samples("m", records_world.TARGET, [])
    assert second.samples("m", records_world.TARGET) == given
    first.for_workers().share_tasks("m", records_world.TARGET, [records_world.known_task()])
    known = second.for_workers().known_tasks("m", records_world.TARGET, ["another"])
    assert known == [records_world.known_task()]
    (remark,) = alone.remarks()
    assert "cannot be used" in remark and len(alone.programs(["task"], "m")) == 1
    for client in clients:
        client.close()


def test_a_run_in_ray_survives_a_lost_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "workers.ray_entry", fake_ray_entry)
    monkeypatch.setattr(retry, "RETRY_DELAY_S", {})
    told: list[str] = []
    record = run(fake_world.config(), tmp_path, report=told.append)
    assert record.state == "done"
    assert (tmp_path / "died").exists()
    assert any("worker lost" in line and "1 (max 3)" in line for line in told)
    assert read_run(tmp_path) == record
    ledger = SqliteLedger(tmp_path / LEDGER, read_only=True)
    assert len(ledger.programs(["export"], "host")) == 1
    ledger.close()


def test_a_users_error_reaches_the_user_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "workers.ray_entry", fake_ray_entry)
    record = run(fake_world.config(seed=13), tmp_path, report=lambda line: None)
    assert record.state == "failed"
    assert record.error == "data.root: there is no folder of that name; name another"


def test_an_error_of_a_tuning_workers_start_reaches_the_user_as_it_was(tmp_path: Path) -> None:
    """Ray wraps an actor's constructor's error in one of its own, without its kind."""
    recording = tmp_path / "answers.jsonl"
    recording.write_text("no recording\n")
    target = {"name": "host", "device": "replay", "recording": str(recording)}
    context = RunContext(
        run_dir=str(tmp_path),
        artifacts=str(tmp_path / "artifacts"),
        lock_dir=str(tmp_path / "locks"),
        config=fake_world.config(targets=[target]),
    )
    table = LedgerClient(start_table(tmp_path / LEDGER)).for_workers()
    cluster: Any = ray
    actor = cluster.remote(concurrency_groups={"control": 1})(TuningActor)
    worker = actor.options(num_cpus=0).remote(context.model_dump_json(), "host", table)
    work = TuneWork(target="host", network=fake_world.network(), trials_per_task=1)
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        ray.get(worker.run.remote([work.model_dump_json()]), timeout=60)
    failure = sort_failure(raised.value)
    assert failure.kind == "user_error" and "answers.jsonl" in failure.message
    ray.get(worker.close.remote(), timeout=10)
    ray.kill(worker)


def test_a_training_gets_its_share_of_the_smallest_machine() -> None:
    assert training_needs([{"CPU": 8.0}, {"CPU": 32.0, "memory": 1.0}], 2) == {"num_cpus": 4}
    assert training_needs([{"CPU": 2.0}], 4) == {"num_cpus": 1}
    assert training_needs([{"memory": 1.0}], 1) == {"num_cpus": 1}
    gpus = [{"CPU": 4.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 1.0}]
    assert training_needs(gpus, 2) == {"num_gpus": 1, "num_cpus": 8}
    assert training_needs([{"GPU": 2.0}], 2) == {"num_gpus": 1, "num_cpus": 1}


@pytest.mark.parametrize(("at_once", "gpus"), [(2, 1), (4, 3), (6, 1), (7, 2)])
def test_trainings_share_gpus_that_are_fewer(at_once: int, gpus: int) -> None:
    needs = training_needs([{"CPU": 16.0 * gpus, "GPU": float(gpus)}], at_once)
    on_each = math.floor(1.0 / round(needs["num_gpus"], 4))
    assert on_each * gpus >= at_once
    assert on_each * needs["num_cpus"] <= 16


def test_failures_are_sorted_into_their_classes() -> None:
    assert sort_failure(UserError("a", "b")).kind == "user_error"
    assert sort_failure(LimitReached("a", "a busy machine")).kind == "system_error"
    for gone in (DeviceLost, DeviceSilent, NoDevice, TrackerUnreachable):
        assert sort_failure(gone("gone")).kind == "device_lost"
    for gone in (ProcessDied, ProcessTimeout):
        assert sort_failure(gone("gone")).kind == "worker_lost"
    assert sort_failure(ray.exceptions.WorkerCrashedError()).kind == "worker_lost"
    assert sort_failure(OSError(28, "No space left on device")).kind == "system_error"
    assert sort_failure(ConnectionResetError("peer")).kind == "device_lost"
    assert sort_failure(TimeoutError("cores")).kind == "timed_out"
    found = sort_failure(KeyError("bug"))
    assert (found.kind, found.message) == ("internal_error", "KeyError: 'bug'")
