"""A comparison of methods, with workers that answer at once."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driver_world
import fake_world
import pytest
from compare_world import World, base
from driver_world import refuse

from orchestrator import driver
from orchestrator.compare import comparison
from orchestrator.compare.comparison import ComparisonStopped, compare
from orchestrator.compare.finals import Finals
from orchestrator.compare.methods import BASELINES, ORIGINAL, OURS, Spent
from orchestrator.compare.page import console_table, headline, remarks, render
from orchestrator.compare.rows import table_of
from orchestrator.compare.searched import at_time, cuts_of, search_s
from orchestrator.policies.candidates import candidate_of
from orchestrator.policies.retry import Failure
from schemas.comparison import AtOurTime, MethodRow, MethodTable
from schemas.config import RunConfig
from schemas.network import Structure
from schemas.record import RunRecord
from schemas.table import Comparison
from schemas.work import (
    FineTuned,
    FineTuneWork,
    PrepareWork,
    ScreenWork,
    TuneWork,
)


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
    page, text = ((world.folder / f"comparison.{kind}").read_text() for kind in ("html", "txt"))
    assert all(row.method in page and f"{row.fps:,.0f}" in text for row in table.rows)
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
    assert [w for w in world.works(OURS, TuneWork) if not w.added_trials][1].trials_per_task == 8


def test_methods_of_one_ratio_get_as_many_candidates_as_ours(whole: Whole) -> None:
    world, table = whole
    ours = next(row for row in table.rows if row.method == OURS)
    for method in ("uniform-l1", "fpgm", "depgraph-global"):
        prune = world.record(method).config.prune
        assert prune.least_candidates == ours.trained > 0 and prune.least_train_s > 0


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


def test_ratios_to_the_original_are_for_each_cut_and_say_at_which_cap(whole: Whole) -> None:
    _, table = whole
    ours, original = row_of(table, OURS), row_of(table, "cprune-original")
    assert 0 < ours.cuts < ours.decided, "some were trained further"
    expected = (ours.search_programs / ours.cuts) / (original.search_programs / original.cuts)
    assert table.measured_programs_ratio == pytest.approx(expected)
    assert table.cost_ratio_caps == {"cprune-original": 3}
    assert any("at a cap of 3 candidates of cprune-original" in told for told in remarks(table))


def test_a_cut_that_is_trained_further_is_one_cut() -> None:
    cut = functools.partial(candidate_of, "task", "name", groups=fake_world.groups())
    dense, half = fake_world.network(), fake_world.network(Structure(widths={"deep": 16}))
    first = cut(dense, cut={"deep": 16})
    further = cut(dense, cut={"deep": 16}, trained_from=half, trained_further=1)
    unscreened = cut(half, cut={"deep": 16})  # what is known of such a training in a ladder
    assert cuts_of([first, further, unscreened]) == 1
    assert cuts_of([first, cut(half, cut={"deep": 8}), cut(dense, cut={"deep": 8})]) == 3


def test_the_long_training_after_the_last_step_is_search_time(whole: Whole) -> None:
    record = whole[0].record("cprune-original")
    state = record.targets[0]
    ended = max(event.at for event in record.events if event.state == "proposing")
    assert state.current is not None

    def trained(seconds: float, finished_at: float, structure: Structure) -> RunRecord:
        (last, *_) = (i for i in reversed(record.work) if isinstance(i.work, FineTuneWork))
        assert isinstance(last.work, FineTuneWork)
        work = last.work.model_copy(update={"parent": state.current, "structure": structure})
        times = {"work": work, "seconds": seconds, "finished_at": finished_at}
        others = tuple(item for item in record.work if item is not last)
        return record.model_copy(update={"work": (*others, last.model_copy(update=times))})

    same, narrower = state.current.structure, Structure(widths={"deep": 1})
    assert search_s(trained(50.0, ended + 60.0, same), state) == state.searched_s + 50.0
    assert search_s(trained(50.0, ended - 1.0, same), state) == state.searched_s
    assert search_s(trained(50.0, ended + 60.0, narrower), state) == state.searched_s
    row = table_of({OURS: trained(50.0, ended + 60.0, same)}, "host", None, is_quick=False).rows[0]
    assert row.search_s == state.searched_s + 50.0


def test_the_best_other_method_is_the_fastest_that_meets_the_floor(whole: Whole) -> None:
    _, table = whole
    rivals = [row for row in table.rows if row.method in BASELINES and row.meets_floor]
    best = max(rivals, key=lambda row: row.speedup)
    assert table.best_baseline == best.method and table.speedup_over_dense is not None
    assert table.best_baseline_ratio == pytest.approx(table.speedup_over_dense / best.speedup)
    assert f"the best other method ({best.method})" in headline(table)


def test_where_not_all_were_run_the_best_is_said_to_be_the_best_of_those(whole: Whole) -> None:
    world, _ = whole
    records = {name: world.record(name) for name in ("dense", OURS, "fpgm", "uniform-l1")}
    table = table_of(records, "host", None, is_quick=False)
    assert table.best_of == ["fpgm", "uniform-l1"]
    best, rest = sorted(table.best_of, key=lambda name: -row_of(table, name).speedup)
    told = f"the best of the 2 other methods run ({best}; the rest: {rest})"
    assert headline(table).endswith(told)
    del records[rest]
    alone = table_of(records, "host", None, is_quick=False)
    assert headline(alone).endswith(f"than the one other method run ({best})")


@pytest.mark.parametrize(
    ("capped", "bound", "words"),
    [
        ((), None, "2.00x faster than the dense network, 1.60x faster than"),
        (("netadapt",), "upper", "2.00x faster than the dense network, at most 1.60x faster"),
        ((OURS,), "lower", "at least 2.00x faster than the dense network, at least 1.60x faster"),
        ((OURS, "netadapt"), "open", "1.60x faster (limits ended both sides) than the best"),
    ],
)
def test_ratios_at_a_limit_are_said_to_be_bounds(
    whole: Whole, capped: tuple[str, ...], bound: str | None, words: str
) -> None:
    world, _ = whole
    names = ("dense", OURS, "uniform-l1", "netadapt")
    records = {
        name: stopped_by(world.record(name), "budget.max_hours" if name in capped else "no step")
        for name in names
    }
    finals = Finals(
        key="k",
        beside_dense={name: pairs(10.0, ms) for name, ms in zip(names[1:], (5, 8, 9), strict=True)},
        beside_ours={"uniform-l1": pairs(5.0, 8.0), "netadapt": pairs(5.0, 9.0)},
    )
    table = table_of(records, "host", finals, is_quick=False)
    assert table.best_baseline == "uniform-l1" and table.best_baseline_bound == bound
    assert row_of(table, "netadapt").ours_is_faster_bound == bound
    assert {row.method for row in table.rows if row.speedup_bound == "lower"} == set(capped)
    assert words in headline(table) and words in render([table])
    cells = {row[0]: row[2] for row in console_table(table)[1]}
    assert {name for name, speedup in cells.items() if speedup.startswith(">= ")} == set(capped)
    assert any("lower bound" in told for told in remarks(table)) == bool(capped)
    line = table.model_dump(mode="json")
    assert line["speedup_bound"] == ("lower" if OURS in capped else None)


def test_of_a_slower_network_bounds_are_told_the_other_way_round(whole: Whole) -> None:
    _, table = whole
    slower = {"best_baseline_ratio": 0.8, "best_baseline_bound": "upper"}
    assert "at least 1.25x slower" in headline(table.model_copy(update=slower))


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


def test_the_best_other_method_is_the_one_that_comes_nearest_to_ours_in_turns_with_it(
    whole: Whole,
) -> None:
    world, _ = whole
    records = {method: world.record(method) for method in ("dense", OURS, "uniform-l1", "fpgm")}
    finals = Finals(
        key="k",
        beside_dense={
            OURS: pairs(10.0, 5.0),
            "uniform-l1": pairs(10.0, 7.0),
            "fpgm": pairs(10.0, 8.0),
        },
        beside_ours={"uniform-l1": pairs(5.0, 9.0), "fpgm": pairs(5.0, 8.0)},
    )
    table = table_of(records, "host", finals, is_quick=True)
    assert table.best_baseline == "fpgm"
    assert table.best_baseline_ratio == pytest.approx(1.6)


def test_where_the_original_stood_after_a_time_counts_what_had_ended_by_then(whole: Whole) -> None:
    record = whole[0].record("cprune-original")
    never, at_the_end = at_time(record, "host", -1.0), at_time(record, "host", 1e9)
    assert (never.decided, never.accepted, never.speedup) == (0, 0, 1.0)
    steps = record.targets[0].steps
    assert at_the_end.decided == len(steps)
    assert at_the_end.accepted == sum(step.accepted for step in steps)


def test_what_the_original_would_have_reached_after_it_was_stopped_is_not_told(
    whole: Whole,
) -> None:
    world, table = whole
    record = world.record("cprune-original")
    state = record.targets[0]
    later = at_time(record, "host", state.searched_s + 1.0)
    assert later.stopped_after_s == state.searched_s and later.decided == len(state.steps)
    assert at_time(record, "host", state.searched_s / 2).stopped_after_s is None
    by_itself = at_time(stopped_by(record, "no step is left"), "host", state.searched_s + 1.0)
    assert by_itself.stopped_after_s is None

    def told(found: AtOurTime) -> str:
        return list(remarks(table.model_copy(update={"original_at_our_time": found})))[-1]

    assert "stood after our time is not known" in told(later)
    assert "had searched for" in told(later) and "After our search time" not in told(later)
    assert told(by_itself).startswith("After our search time the original had decided on 3 cand")


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


def test_a_method_that_cannot_run_is_named_and_the_others_go_on(world: World) -> None:
    methods = (OURS, "depgraph-global", "uniform-l1")
    world.fault = lambda work: (
        Failure(kind="user_error", message="prune.policy: the network is not understood")
        if isinstance(work, PrepareWork) and [*world.workers][-1] == "depgraph-global"
        else None
    )
    table = world.go(methods)
    assert [row.method for row in table.rows] == ["dense", OURS, "uniform-l1"]
    assert table.not_run == {"depgraph-global": "prune.policy: the network is not understood"}
    told = "No row for depgraph-global, which could not run: prune.policy: the network is not"
    assert any(remark.startswith(told) for remark in remarks(table))
    assert told in (world.folder / "comparison.html").read_text()
    (kept,) = json.loads((world.folder / "comparison.json").read_text())
    assert kept["not_run"] == table.not_run
    world.fault = lambda work: None
    again = world.go(methods)
    assert [row.method for row in again.rows] == ["dense", *methods] and again.not_run == {}


def test_where_ours_cannot_run_there_is_nothing_to_compare(world: World) -> None:
    world.fault = lambda work: (
        Failure(kind="user_error", message="the loss became infinite")
        if isinstance(work, FineTuneWork)
        else None
    )
    with pytest.raises(ComparisonStopped, match=r"the run of ours .* infinite") as stop:
        world.go((OURS, "uniform-l1"))
    assert stop.value.exit_code == 2


def test_a_method_that_is_interrupted_on_one_target_stops_it_though_another_cannot_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = comparison.driver.run

    def interrupted(config: RunConfig, folder: Path, **given: Any) -> RunRecord:
        record = run(config, folder, **given)
        if config.run != "uniform-l1":
            return record
        states = [
            record.targets[0].model_copy(update={"state": s}) for s in ("failed", "cancelled")
        ]
        change = {"state": "failed", "wrong_input": True, "targets": tuple(states)}
        return record.model_copy(update=change)

    monkeypatch.setattr(comparison.driver, "run", interrupted)
    with pytest.raises(ComparisonStopped, match="uniform-l1"):
        world.go((OURS, "uniform-l1"))


def test_a_row_that_was_given_less_than_ours_took_since_begins_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = (OURS, "uniform-l1")
    world.go(methods)
    before = world.record("uniform-l1")
    more = Spent(candidates=40, most_trials=before.config.tune.final_trials_per_task, train_s=1.0)
    monkeypatch.setattr(comparison, "spent_in", lambda record: more)
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
    monkeypatch.setattr(comparison, "spent_in", lambda record: more)
    assert [row.method for row in world.go((OURS, "fpgm")).rows] == ["dense", OURS, "fpgm"]


def test_a_row_that_ended_at_a_cap_stays_though_the_cap_is_now_larger(world: World) -> None:
    capped = row_of(world.go((OURS, ORIGINAL), original_candidates=1), ORIGINAL)
    again = world.go((OURS,), original_candidates=20)
    assert capped.capped and row_of(again, ORIGINAL) == capped
    further = row_of(world.go((OURS, ORIGINAL), original_candidates=20), ORIGINAL)
    assert further.decided > capped.decided


def test_a_row_that_cannot_be_read_is_told(world: World) -> None:
    told: list[str] = []
    world.go((OURS,))
    (world.folder / "fpgm").mkdir()
    compare(
        base(), world.folder, (OURS,), is_quick=False, original_candidates=3, report=told.append
    )
    assert any("fpgm is left out: " in line for line in told)
    assert not any("uniform-l1" in line for line in told), "there never was one"


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


def test_ablations_are_ours_with_parts_left_out(world: World) -> None:
    table = world.go((OURS, "without transplants", "without retuning"))
    assert table.best_baseline is None
    retuned = [w for w in world.works("without-retuning", TuneWork) if w.added_trials]
    assert {work.trials_per_task for work in retuned} == {0}
    searched = world.works("without-transplants", ScreenWork)
    assert searched and all(work.by == "search" for work in searched)


# -------------------------------------------------------------------------------- helpers


def row_of(table: MethodTable, method: str) -> MethodRow:
    return next(row for row in table.rows if row.method == method)


def stopped_by(record: RunRecord, why: str) -> RunRecord:
    targets = tuple(item.model_copy(update={"stopped_by": why}) for item in record.targets)
    return record.model_copy(update={"targets": targets})


def pairs(reference_ms: float, candidate_ms: float) -> tuple[Comparison, ...]:
    comparison = Comparison(
        reference_ms=(reference_ms,) * 6,
        candidate_ms=(candidate_ms,) * 6,
        reference=fake_world.measurement(reference_ms),
        candidate=fake_world.measurement(candidate_ms),
    )
    return (comparison,) * 6
