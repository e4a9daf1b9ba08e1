"""Tuning a tiny network on a real local device: budgets, records, restarts, warm processes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tuning_world import Table, network, restarted, tune_work

from schemas.table import Program
from schemas.work import Tuned
from workers.measuring.gauge import OutputCheck
from workers.tuning.search_jobs import SearchJob
from workers.tuning.searchers import Searchers
from workers.tuning.trials import Trial
from workers.tuning.tuner import Tuner
from workers.tuning.worker import TuningWorker

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "conv1", "layer2.0.conv1"


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def empty_table(table: Table) -> None:
    table.forget()


@pytest.fixture
def tuner(worker: TuningWorker) -> Tuner:
    return restarted(worker)


@pytest.fixture
def asked(worker: TuningWorker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs the device was asked to measure."""
    gauge, keys = worker._device.gauge, []
    measure = gauge.measure
    monkeypatch.setattr(gauge, "measure", lambda key, lib: keys.append(key) or measure(key, lib))
    return keys


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], list[str]]:
    """What each round proposed: by task and number of its programs known before."""
    rounds: dict[tuple[str, int], list[str]] = {}
    original = Searchers.propose

    def propose(self: Searchers, jobs: Sequence[SearchJob], booster: bytes) -> Any:
        found = original(self, jobs, booster)
        for job, programs in zip(jobs, found, strict=True):
            ids = [program.program_id for program in programs]
            known = rounds.setdefault((job.task.task_id, len(job.known)), ids)
            assert known == ids, "a round changed its mind"
        return found

    monkeypatch.setattr(Searchers, "propose", propose)
    return rounds


def task_of(tuned: Tuned, module: str) -> str:
    (found,) = [s.task_id for s in tuned.table.subgraphs if s.module == module]
    return found


def trials(table: Table, tuned: Tuned) -> dict[str, int]:
    """Programs stored, by the first module of their task."""
    counts = Counter(program.task_id for program in table.all_programs())
    return {tuned.table.modules(task_id)[0]: count for task_id, count in counts.items()}


def same_task(one: Program, other: Program) -> bool:
    return one.task_id == other.task_id


def test_budgets_are_exact_and_the_fastest_is_checked(
    tuner: Tuner, table: Table, asked: list[str]
) -> None:
    work = tune_work(3, FIRST, SECOND, trials={SECOND: 5, "fc": 9})
    tuned = tuner.tune(work)
    assert trials(table, tuned) == {FIRST: 3, SECOND: 5}
    assert tuned.measured_programs + tuned.failed_programs == 8
    assert len(set(asked)) == len(asked) <= 8
    ran = {p.program_id: p for p in table.all_programs() if p.measurement}
    for module, wanted in ((FIRST, 3), (SECOND, 5)):
        entry = tuned.latency(task_of(tuned, module))
        assert (entry.trials, entry.lineage_trials) == (wanted, wanted)
        assert entry.program_id is not None and entry.latency_ms > 0
        assert entry.vector_factors[0] == entry.channel_tiles[-1]
        best = ran[entry.program_id]
        assert entry.latency_ms == best.latency_ms
        assert best.max_abs_error is not None and best.max_abs_error < 1e-4
        assert all(best.latency_ms <= p.latency_ms for p in ran.values() if same_task(p, best))
    assert tuned.latency(task_of(tuned, "fc")).program_id is None
    assert tuned.device_s > 0 and tuned.device_model == table.all_programs()[0].device_model
    assert all(program.batch.startswith(f"{work.key}/") for program in table.all_programs())


def test_a_task_begins_with_what_its_siblings_found(worker: TuningWorker, table: Table) -> None:
    restarted(worker).tune(tune_work(3))
    bundle = worker._tuner._bundles.dense
    tiles: dict[str, set[object]] = {task_id: set() for task_id in bundle.task_ids}
    for program in table.all_programs():
        tiles[program.task_id].add(tiles_of(program))
    for one, other in siblings_in(worker):
        assert tiles[one] & tiles[other]


def test_a_task_ends_with_what_a_faster_sibling_found(worker: TuningWorker, table: Table) -> None:
    bundle = worker._tuner._bundles.dense
    one, other = siblings_in(worker)[0]
    alone = [bundle.table.modules(task) for task in (one, other)]
    restarted(worker).tune(tune_work(1, *alone[0]))
    restarted(worker).tune(tune_work(8, *alone[1]))
    (own,) = [program for program in table.all_programs() if program.task_id == one]
    ran = [p for p in table.all_programs() if p.task_id == other and p.measurement]
    found = next(program for program in ran if tiles_of(program) != tiles_of(own))
    assert own.measurement and found.measurement
    fast = found.measurement.model_copy(update={"run_ms": (0.1 * own.latency_ms,)})
    table.record_check(found.model_copy(update={"measurement": fast}))
    both = tune_work(1, *alone[0], *alone[1])
    restarted(worker).tune(both)
    (taken,) = [p for p in table.all_programs() if p.batch.startswith(both.key)]
    assert (taken.task_id, tiles_of(taken)) == (one, tiles_of(found))


def tiles_of(program: Program) -> tuple[object, object]:
    return program.channel_tiles, program.reduction_tiles


def siblings_in(worker: TuningWorker) -> list[tuple[str, str]]:
    """Pairs of convolutions whose loops are the same: with a residual behind it and without."""
    bundle = worker._tuner._bundles.dense
    found = [
        (one, other)
        for one, other in itertools.combinations(bundle.task_ids, 2)
        if bundle.workloads[one].axes == bundle.workloads[other].axes
        and bundle.workloads[one].task.kind == "conv2d"
    ]
    assert found
    return found


def test_small_tasks_are_also_tried_on_one_core(worker: TuningWorker, table: Table) -> None:
    restarted(worker).tune(tune_work(4))
    by_task: dict[str, list[str]] = {}
    for program in table.all_programs():
        if program.measurement is not None:
            by_task.setdefault(program.task_id, []).append(program.trace)
    tried = {
        task: {"T.parallel" in script(worker, task, text) for text in texts}
        for task, texts in by_task.items()
    }
    assert sum(kinds == {True, False} for kinds in tried.values()) >= len(tried) / 2


def script(worker: TuningWorker, task_id: str, trace: str) -> str:
    tuner = worker._tuner
    module = tuner._bundles.dense.workloads[task_id].module
    return str(tuner.space.replay(module, trace).mod.script())


def test_what_was_watched_on_another_occasion_is_forgotten(
    worker: TuningWorker, table: Table
) -> None:
    """Of a task that is watched again; it may have been at another pace of the device."""
    tuner, bundle = worker._tuner, worker._tuner._bundles.dense
    restarted(worker).tune(tune_work(2, FIRST, SECOND))
    programs = table.all_programs()
    task, other_task = dict.fromkeys(program.task_id for program in programs)
    one, other = (p.program_id for p in programs if p.task_id == task)
    kept = next(p.program_id for p in programs if p.task_id == other_task)
    tuner.record_inside(bundle, {(task, one): 1.0, (other_task, kept): 3.0})
    tuner.record_inside(bundle, {(task, other): 2.0})
    watched = {p.program_id: p.inside_ms for p in table.all_programs() if p.inside_ms is not None}
    assert watched == {other: 2.0, kept: 3.0}


def test_the_same_work_again_measures_nothing_and_a_larger_one_the_difference(
    worker: TuningWorker, table: Table, asked: list[str]
) -> None:
    work = tune_work(2, FIRST)
    first = restarted(worker).tune(work)
    stored, count = table.all_programs(), len(asked)
    cost = (first.measured_programs, first.failed_programs)
    for same, counted in ((work, cost), (tune_work(1, FIRST), (0, 0))):
        again = restarted(worker).tune(same)
        assert len(asked) == count and table.all_programs() == stored
        assert again.latencies == first.latencies and again.table == first.table
        assert (again.measured_programs, again.failed_programs) == counted, "of this very work"
    tuned = restarted(worker).tune(tune_work(3, FIRST))
    assert tuned.measured_programs + tuned.failed_programs == 1
    assert trials(table, tuned) == {FIRST: 3} and len(set(asked)) == len(asked)


def test_added_trials_are_counted_from_what_is_there(
    worker: TuningWorker, table: Table, asked: list[str]
) -> None:
    restarted(worker).tune(tune_work(2, FIRST))
    more = tune_work(2, FIRST, added_trials=True)
    tuned = restarted(worker).tune(more)
    assert trials(table, tuned) == {FIRST: 4}
    assert restarted(worker).tune(more).latencies == tuned.latencies
    assert trials(table, tuned) == {FIRST: 4} and len(set(asked)) == len(asked)


def test_a_round_is_measured_while_the_next_is_searched(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second search waits until the first round's programs are being measured."""
    begun, tasks, waited = threading.Event(), set[str](), []
    measure, propose = worker._trials.measure, Searchers.propose

    def measuring(*values: Any, **named: Any) -> list[Program]:
        begun.set()
        return measure(*values, **named)

    def searching(searchers: Searchers, jobs: Sequence[SearchJob], booster: bytes) -> Any:
        (job,) = jobs
        if job.task.task_id not in tasks and tasks:
            waited.append(begun.wait(timeout=60.0))
        tasks.add(job.task.task_id)
        return propose(searchers, jobs, booster)

    monkeypatch.setattr(worker._trials, "measure", measuring)
    monkeypatch.setattr(Searchers, "propose", searching)
    tuner = restarted(worker, searches_meanwhile=True, rounds_at_once=1)
    tuned = tuner.tune(tune_work(2, FIRST, SECOND))
    assert waited == [True]
    assert trials(table, tuned) == {FIRST: 2, SECOND: 2}


def test_rounds_that_are_searched_at_once_are_one_batch(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a fleet is given more programs at a time than one round has."""
    measure, batches = worker._trials.measure, []

    def measuring(trials: Sequence[Trial], *values: Any, **named: Any) -> list[Program]:
        batches.append([each.workload.task.task_id for each in trials])
        return measure(trials, *values, **named)

    monkeypatch.setattr(worker._trials, "measure", measuring)
    tuned = restarted(worker, rounds_at_once=2).tune(tune_work(3, FIRST, SECOND))
    tasks = [task_of(tuned, FIRST)] * 2 + [task_of(tuned, SECOND)] * 2
    assert batches[:2] == [tasks, [*tasks[1:3]]]
    assert trials(table, tuned) == {FIRST: 3, SECOND: 3}


@pytest.mark.parametrize(
    ("stored", "meanwhile", "at_once"),
    [(1, False, 1), (5, False, 1), (5, True, 1), (3, False, 2), (5, True, 2)],
)
def test_a_killed_work_goes_on_where_it_was(
    worker: TuningWorker,
    table: Table,
    asked: list[str],
    proposed: dict[tuple[str, int], list[str]],
    stored: int,
    meanwhile: bool,
    at_once: int,
) -> None:
    """``proposed`` asserts that every round proposes after the restart what it did before."""

    def kill(programs: int) -> None:
        if programs == stored:
            raise Interrupted

    work = tune_work(4, FIRST, SECOND)
    table.before_add = kill
    with pytest.raises(Interrupted):
        restarted(worker, searches_meanwhile=meanwhile, rounds_at_once=at_once).tune(work)
    before = table.all_programs()
    assert len(before) == stored and proposed
    measured_and_lost = asked[stored:]
    asked.clear()
    table.before_add = None

    again = restarted(worker, searches_meanwhile=meanwhile, rounds_at_once=at_once)
    tuned = again.tune(work)
    assert trials(table, tuned) == {FIRST: 4, SECOND: 4}
    assert {program.program_id for program in before}.isdisjoint(asked)
    assert len(set(asked)) == len(asked) and set(measured_and_lost) <= set(asked)
    assert tuned.measured_programs + tuned.failed_programs == 8, "both attempts count"
    rounds = {program_id for ids in proposed.values() for program_id in ids}
    assert rounds == {program.program_id for program in table.all_programs()}


def test_unchanged_tasks_of_a_pruned_network_keep_their_records(
    worker: TuningWorker, table: Table, asked: list[str]
) -> None:
    dense = restarted(worker).tune(tune_work(2, FIRST, SECOND))
    count = len(asked)
    pruned = network(layer2__0__conv1=8)
    tuned = restarted(worker).tune(tune_work(2, FIRST, SECOND, network=pruned))
    assert tuned.latency(task_of(tuned, FIRST)) == dense.latency(task_of(dense, FIRST))
    assert task_of(tuned, SECOND) != task_of(dense, SECOND)
    assert len(asked) == count + tuned.measured_programs
    changed = {task_of(tuned, SECOND)}
    programs = {program.program_id: program for program in table.all_programs()}
    assert {programs[key].task_id for key in asked[count:]} == changed
    assert tuned.measured_programs + tuned.failed_programs == 2


def test_processes_stay_warm(worker: TuningWorker) -> None:
    def pids() -> list[int | None]:
        gauge: Any = worker._device.gauge
        device = [gauge._process.pid, gauge._local.local.pid]
        return [worker._builder._process.pid, worker._searchers.pid, *device]

    worker._tuner.tune(tune_work(1, FIRST))
    before = pids()
    worker._tuner.tune(tune_work(1, SECOND))
    worker._tuner.tune(tune_work(2, FIRST))
    assert None not in before and pids() == before


def test_a_wrong_program_is_never_the_fastest(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first program whose outputs are compared gives another result."""
    gauge, compared = worker._device.gauge, []
    original = gauge.check

    def check(key: str, *libraries: Any) -> OutputCheck:
        compared.append(key)
        return OutputCheck(0.5, 1.0) if len(compared) == 1 else original(key, *libraries)

    monkeypatch.setattr(gauge, "check", check)
    tuned = restarted(worker).tune(tune_work(3, FIRST))
    condemned = compared[0].removeprefix("check:")
    (program,) = [p for p in table.all_programs() if p.program_id == condemned]
    assert program.measurement is None and "wrong result: differs by 0.5" in program.error
    entry = tuned.latency(task_of(tuned, FIRST))
    assert entry.program_id not in (None, condemned) and entry.trials == 3
    (best,) = [p for p in table.all_programs() if p.program_id == entry.program_id]
    assert best.max_abs_error is not None and len(compared) == 2


def test_a_task_none_of_whose_programs_runs_is_measured_as_it_is(
    tuner: Tuner, table: Table
) -> None:
    tuned = tuner.tune(tune_work(0, FIRST))
    entry = tuned.latency(task_of(tuned, FIRST))
    assert entry.program_id is not None and entry.latency_ms > 0
    assert [json.loads(program.trace) for program in table.all_programs()] == [[[], []]]


@pytest.mark.parametrize(
    ("limit", "trials"),
    [("max_s", 1), ("max_device_s", 2)],  # the untuned program alone; the first round
)
def test_time_that_is_spent_ends_the_search(worker: TuningWorker, limit: str, trials: int) -> None:
    tuned = restarted(worker, **{limit: 1e-9}).tune(tune_work(6, FIRST))
    entry = tuned.latency(task_of(tuned, FIRST))
    assert entry.program_id is not None and entry.trials == trials


def test_the_dense_networks_trials_are_not_cut_short(worker: TuningWorker) -> None:
    behind = tune_work(1, FIRST).model_copy(update={"trials": {FIRST: 3}})
    tuned = restarted(worker, max_s=1e-9).tune(behind)
    assert tuned.latency(task_of(tuned, FIRST)).trials == 3


def test_a_lost_build_of_the_untuned_program_condemns_no_program(
    worker: TuningWorker, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker._trials._untuned.clear()
    build, lost = worker._builder.build, []

    def lose(jobs: Any, timeout_s: float) -> Any:
        if not lost and any(job.form == "whole" for job in jobs):
            lost.append(worker._builder._process.pid)
            worker._builder.close()  # as if it had been killed: every job of the batch is lost
            return [type(r)(r.path, error="the builder was replaced") for r in build(jobs, 0.001)]
        return build(jobs, timeout_s)

    monkeypatch.setattr(worker._builder, "build", lose)
    tuned = restarted(worker).tune(tune_work(3, FIRST))
    assert lost
    assert tuned.latency(task_of(tuned, FIRST)).program_id is not None
    assert not any(program.error for program in table.all_programs())


def test_only_the_targets_intrinsics_are_imported() -> None:
    script = """
from device_agents.lean_tvm import block_torch
block_torch()
import json, sys
from tvm import te
from tvm.ir import IRModule
from workers.compiling.programs import ScheduleSpace
from workers.tuning.search import Search, target_of
space = ScheduleSpace(target_of({"kind": "llvm", "num-cores": 2}))
a = te.placeholder((8, 8), name="a")
function = te.create_prim_func([a, te.compute((8, 8), lambda i, j: a[i, j] + 1.0, name="c")])
module = IRModule({"main": function.with_attr("global_symbol", "main")})
Search(space, 4, 1).context("task", module, 1).generate_design_space()
name = "tvm.s_tir.tensor_intrin."
print(json.dumps(sorted(m.removeprefix(name) for m in sys.modules if m.startswith(name))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    assert "x86" in names
    assert {"cuda", "rocm", "metal", "arm_cpu", "hexagon"}.isdisjoint(names)
