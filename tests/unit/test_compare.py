"""A comparison of methods, with workers that answer at once."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import driver_world
import fake_world
import pytest
from driver_world import opening, refuse

from device_agents.session import NoDevice
from orchestrator import driver
from orchestrator.compare import comparison
from orchestrator.compare.comparison import ComparisonStopped, compare
from orchestrator.compare.finals import Finals
from orchestrator.compare.methods import (
    BASELINES,
    OURS,
    Spent,
    merged,
    method_config,
    quick,
    with_trials,
)
from orchestrator.compare.page import console_table, headline, remarks, render
from orchestrator.compare.rows import at_time, table_of
from orchestrator.dispatch import Workers
from orchestrator.policies.retry import Failure
from orchestrator.store.base import Ledger
from orchestrator.store.reader import read_run
from orchestrator.summary import exported_of
from schemas.comparison import MethodTable
from schemas.config import RunConfig
from schemas.record import RunRecord
from schemas.table import Comparison
from schemas.work import Exported, FineTuned, FineTuneWork, ScreenWork, TuneWork, Work

REPLAY = [{"name": "host", "device": "replay", "recording": "answers.jsonl"}]


def base(**changes: object) -> RunConfig:
    values: dict[str, object] = {
        "prune": {"max_accuracy_drop": 0.2, "min_width_fraction": 0.3},
        "targets": REPLAY,
        **changes,
    }
    return fake_world.config(**values)


def quiet(text: str) -> None:
    pass


class World:
    """Runs every method with workers of this process, and keeps what they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.workers: dict[str, fake_world.FakeWorkers] = {}
        run = functools.partial(driver.run, workers_factory=self._open)
        monkeypatch.setattr(comparison.driver, "run", run)
        self.fault = lambda work: None

    def go(self, methods: tuple[str, ...] = (OURS, *BASELINES)) -> MethodTable:
        tables = compare(
            base(), self.folder, methods, is_quick=False, original_candidates=3, report=quiet
        )
        return tables[0]

    def record(self, method: str) -> RunRecord:
        return read_run(self.folder / method)

    def _open(self, config: RunConfig, folder: Path) -> tuple[Ledger, Workers]:
        weights = fake_world.network().weights
        stored = folder / "artifacts" / weights[:2] / f"{weights}.safetensors"
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(b"dense weights")
        self.workers[config.run] = fake_world.FakeWorkers(fault=self.fault)
        return opening(self.workers[config.run])(config, folder)

    def works(self, method: str, kind: type) -> list[Work]:
        return [work for work in self.workers[method].executed if isinstance(work, kind)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, MethodTable]]:
    """A comparison of all methods."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, tmp_path_factory.mktemp("comparison"))
        yield world, world.go()


Whole = tuple[World, MethodTable]


def test_every_method_has_a_row_and_the_files_hold_them_all(whole: Whole) -> None:
    world, table = whole
    assert [row.method for row in table.rows] == ["dense", OURS, *BASELINES]
    headings, rows = console_table(table)
    assert [row[0].split()[0] for row in rows] == ["dense", OURS, *BASELINES]
    assert {len(row) for row in rows} == {len(headings)}
    content = json.loads((world.folder / "comparison.json").read_text())
    assert content == [table.model_dump(mode="json")]
    lines = list(csv.DictReader((world.folder / "comparison.csv").read_text().splitlines()))
    assert [line["method"] for line in lines] == [row.method for row in table.rows]
    page = (world.folder / "comparison.html").read_text()
    assert all(row.method in page for row in table.rows)
    assert "SIMULATED" in page
    for row in table.rows:
        assert (world.folder / row.run / "report" / "index.html").is_file()


def test_all_start_from_the_same_dense_weights(whole: Whole) -> None:
    world, _ = whole
    for method in ("dense", OURS, *BASELINES):
        checkpoint = world.record(method).config.model.checkpoint
        assert checkpoint is not None and Path(checkpoint).read_bytes() == b"dense weights"
    assert world.record("start").config.model.checkpoint is None


def test_every_final_tuning_has_the_same_trials_and_the_dense_one_no_fewer_than_ours_in_all(
    whole: Whole,
) -> None:
    world, table = whole
    ours = next(row for row in table.rows if row.method == OURS)
    assert ours.most_trials > 8  # twice the trials of the search, and what its programs come from
    for method in ("dense", *BASELINES):
        first, *final = [w for w in world.works(method, TuneWork) if not w.added_trials]
        assert first.trials_per_task == 4
        wanted = ours.most_trials if method == "dense" else 8
        assert {work.trials_per_task for work in final} == {wanted}
    own = [work for work in world.works(OURS, TuneWork) if not work.added_trials]
    assert own[1].trials_per_task == 8


def test_methods_of_one_ratio_get_as_many_candidates_as_ours(whole: Whole) -> None:
    world, table = whole
    ours = next(row for row in table.rows if row.method == OURS)
    for method in ("uniform-l1", "fpgm", "depgraph-global"):
        assert world.record(method).config.prune.least_candidates == ours.trained > 0


def test_netadapt_gets_three_times_our_training(whole: Whole) -> None:
    world, _ = whole
    ours_s = sum(
        item.outcome.network.train_s
        for item in world.record(OURS).work
        if isinstance(item.outcome, FineTuned)
    )
    hours = world.record("netadapt").config.budget.max_gpu_hours
    assert hours is not None and hours * 3600.0 == pytest.approx(3.0 * ours_s) and ours_s > 0


def test_the_original_ends_at_its_limit_and_is_said_to(whole: Whole) -> None:
    world, table = whole
    original = next(row for row in table.rows if row.method == "cprune-original")
    assert original.decided == 3 and original.capped
    assert any("cprune-original" in remark and "limit" in remark for remark in remarks(table))
    assert {work.by for work in world.works("cprune-original", ScreenWork)} == {"search_all"}


def test_ratios_to_the_original_are_for_each_candidate(whole: Whole) -> None:
    _, table = whole
    ours, original = (
        next(row for row in table.rows if row.method == name) for name in (OURS, "cprune-original")
    )
    expected = (ours.search_programs / ours.decided) / (original.search_programs / original.decided)
    assert table.measured_programs_ratio == pytest.approx(expected)


def test_the_best_other_method_is_the_fastest_that_meets_the_floor(whole: Whole) -> None:
    _, table = whole
    rivals = [row for row in table.rows if row.method in BASELINES and row.meets_floor]
    best = max(rivals, key=lambda row: row.speedup)
    assert table.best_baseline == best.method and table.speedup_over_dense is not None
    assert table.best_baseline_ratio == pytest.approx(table.speedup_over_dense / best.speedup)
    assert best.method in headline(table)


def test_rows_that_lose_too_much_on_the_test_images_are_named(whole: Whole) -> None:
    _, table = whole
    assert not any("test images" in remark for remark in remarks(table))
    excess = {OURS: 0.0155, "fpgm": None}
    rows = [
        row.model_copy(update={"excess_test_loss": excess.get(row.method)}) for row in table.rows
    ]
    (told,) = [
        remark
        for remark in remarks(table.model_copy(update={"rows": rows}))
        if "test images" in remark
    ]
    assert "ours by 1.55" in told and "fpgm" not in told


def test_rows_are_measured_beside_the_dense_network_where_there_is_a_device(whole: Whole) -> None:
    world, _ = whole
    records = {method: world.record(method) for method in ("dense", OURS, "uniform-l1")}
    finals = Finals(
        key="k",
        beside_dense={OURS: pairs(10.0, 5.0), "uniform-l1": pairs(10.0, 8.0)},
        beside_ours={"uniform-l1": pairs(5.0, 8.0)},
    )
    table = table_of(records, "host", finals, is_quick=True)
    speedups = {row.method: row.speedup for row in table.rows}
    assert speedups == pytest.approx({"dense": 1.0, OURS: 2.0, "uniform-l1": 1.25})
    assert table.best_baseline_ratio == pytest.approx(1.6)
    assert "QUICK" in render([table])


def test_where_the_original_stood_after_a_time_counts_what_had_ended_by_then(whole: Whole) -> None:
    record = whole[0].record("cprune-original")
    never, at_the_end = at_time(record, "host", -1.0), at_time(record, "host", 1e9)
    assert (never.decided, never.accepted, never.speedup) == (0, 0, 1.0)
    steps = record.targets[0].steps
    assert at_the_end.decided == len(steps)
    assert at_the_end.accepted == sum(step.accepted for step in steps)


def test_a_comparison_that_is_done_does_nothing_more(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, first = whole
    again = functools.partial(driver.run, workers_factory=refuse)
    monkeypatch.setattr(comparison.driver, "run", again)
    assert world.go() == first


def test_a_method_that_fails_stops_it_and_the_same_command_goes_on(world: World) -> None:
    methods = (OURS, "uniform-l1")
    world.fault = lambda work: (
        Failure(kind="system_error", message="no room")
        if isinstance(work, FineTuneWork) and "uniform-l1" in world.workers
        else None
    )
    with pytest.raises(ComparisonStopped, match=r"uniform-l1 .* is failed: no room; the") as stop:
        world.go(methods)
    assert stop.value.exit_code == 1
    world.fault = lambda work: None
    assert [row.method for row in world.go(methods).rows] == ["dense", *methods]


def test_a_row_that_was_given_less_than_ours_took_since_begins_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = (OURS, "uniform-l1")
    world.go(methods)
    before = world.record("uniform-l1")
    more = Spent(candidates=40, most_trials=before.config.tune.final_trials_per_task, train_s=1.0)
    monkeypatch.setattr(comparison, "_spent", lambda record: more)
    world.go(methods)
    assert world.record("uniform-l1").config.prune.least_candidates == 40
    assert world.record("uniform-l1.before-1") == before


def test_rows_that_ended_before_stay_in_the_table_when_one_is_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.go((OURS, "uniform-l1"))
    assert [row.method for row in world.go((OURS, "fpgm")).rows] == [
        "dense",
        OURS,
        "fpgm",
        "uniform-l1",
    ]
    more = Spent(candidates=40, most_trials=1, train_s=1.0)
    monkeypatch.setattr(comparison, "_spent", lambda record: more)
    assert [row.method for row in world.go((OURS, "fpgm")).rows] == ["dense", OURS, "fpgm"]


def test_a_method_that_is_interrupted_leaves_as_an_interrupted_run_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = comparison.driver.run
    monkeypatch.setattr(
        comparison.driver, "run", functools.partial(run, interrupts=driver_world.stopped())
    )
    with pytest.raises(ComparisonStopped, match="is cancelled") as stop:
        world.go((OURS,))
    assert stop.value.exit_code == 130


def test_a_device_that_is_gone_at_the_end_stops_it_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise NoDevice("no device of key local is free")

    monkeypatch.setattr(comparison, "measure_finals", gone)
    monkeypatch.setattr(comparison, "exported_of", with_library)
    config = base(targets=[{"name": "host"}])
    with pytest.raises(ComparisonStopped, match="could not be measured on host: no device of"):
        compare(config, world.folder, (OURS,), is_quick=False, original_candidates=3, report=quiet)


def with_library(record: RunRecord, target: str) -> Exported | None:
    exported = exported_of(record, target)
    artifacts = {"library": "export/model.so"}
    return exported and exported.model_copy(update={"artifacts": artifacts})


def test_ablations_are_ours_with_parts_left_out(world: World) -> None:
    table = world.go((OURS, "without transplants", "without retuning"))
    assert table.best_baseline is None
    retuned = [w for w in world.works("without-retuning", TuneWork) if w.added_trials]
    assert retuned == []
    searched = world.works("without-transplants", ScreenWork)
    assert searched and all(work.by == "search" for work in searched)


# ------------------------------------------------------------------------- configurations


def test_a_methods_settings_replace_those_of_the_configuration(tmp_path: Path) -> None:
    config = base(budget={"max_rounds": 2, "max_hours": 1.0})
    original = method_config(config, "cprune-original", tmp_path, original_candidates=5)
    assert (original.prune.step_accuracy_ratio, original.prune.step_latency_ratio) == (0.995, 0.99)
    assert original.prune.min_width_fraction == 0.2
    assert original.budget.max_rounds == 5 and original.budget.max_hours > 1000
    spent = Spent(most_trials=50)
    tuned = {name: method_config(config, name, tmp_path, ours=spent).tune for name in BASELINES}
    assert {tune.final_trials_per_task for tune in tuned.values()} == {8}
    dense = method_config(config, "dense", tmp_path, ours=spent).tune
    assert dense.final_trials_per_task == 50
    netadapt = method_config(config, "netadapt", tmp_path, ours=Spent())
    assert netadapt.budget.max_gpu_hours, "ours may have trained nothing"
    ours = method_config(config, OURS, tmp_path)
    assert ours.budget.max_rounds == 2 and ours.prune == config.prune


def test_the_quick_form_is_smaller_in_everything() -> None:
    config = base(data={"name": "drawn"}, fine_tune={"short_epochs": 4, "long_epochs": 9})
    small = quick(config)
    assert small.data.arguments["train"] == 4000
    assert small.fine_tune.short_epochs == 1 and small.fine_tune.long_epochs == 4
    assert small.tune.trials_per_task == 8 and small.budget.max_rounds == 20


def test_trials_are_one_setting() -> None:
    tune = with_trials(base(), 70).tune
    assert tune.trials_per_task == 70 and tune.min_trials_per_task == 16
    assert with_trials(base(), 4).tune.min_trials_per_task == 4


def test_sections_are_merged_and_values_replaced() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 3}, "d": {"e": 1}}) == {
        "a": {"b": 3, "c": 2},
        "d": {"e": 1},
    }


def pairs(reference_ms: float, candidate_ms: float) -> Comparison:
    return Comparison(
        reference_ms=(reference_ms,) * 6,
        candidate_ms=(candidate_ms,) * 6,
        reference=fake_world.measurement(reference_ms),
        candidate=fake_world.measurement(candidate_ms),
    )
