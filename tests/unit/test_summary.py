"""The summary: figures from a made-up record, partial records, and the published schema."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import driver_world
import fake_world
import jsonschema
import pytest
import synthetic_record

from orchestrator import results
from orchestrator.report import summary_text
from orchestrator.report.page import render
from orchestrator.speedup import in_words, lower_bound
from orchestrator.summary import summarise, summary_schema, work_of
from schemas.network import Structure
from schemas.record import RunRecord, WorkRecord
from schemas.table import SHARED_BATCH, WRONG_RESULT, Program
from schemas.work import (
    Compared,
    Exported,
    FineTuned,
    FineTuneWork,
    Prepared,
    Screened,
    Tuned,
    UniformTrained,
)


def test_figures_of_a_finished_run() -> None:
    record = synthetic_record.record()
    target = summarise(record).targets[0]
    exported = next(i.outcome for i in record.work if isinstance(i.outcome, Exported))
    assert target.speedup == statistics.median(exported.speedup_ratios)
    assert target.speedup_low is not None and 1 < target.speedup_low <= target.speedup
    assert target.baseline and target.final and target.uniform
    assert target.baseline.latency_ms == exported.dense.latency.latency_ms
    assert target.final.fps == pytest.approx(1000 / target.final.latency_ms)
    assert target.final.test_accuracy == 0.9778
    assert target.baseline.latency_ms_iqr > 0
    assert len(target.steps) == 14 and target.steps[0].accepted
    assert target.widths["conv1"] == (16, 16) and "fc" not in target.widths
    assert all(kept <= dense for dense, kept in target.widths.values())
    assert math.isclose(sum(task.share for task in target.tasks_before), 1.0)
    assert sum(t.program_ms for t in target.tasks_after) < sum(
        t.program_ms for t in target.tasks_before
    )
    assert target.library_check and target.library_check.images == 32
    assert not target.simulated
    assert target.artifacts["library"] == "export/host/network.so"


@pytest.mark.parametrize(("share", "reached"), [(1.01, "reached"), (0.99, "NOT reached")])
def test_whether_the_latency_target_was_met_is_said(share: float, reached: str) -> None:
    record = synthetic_record.record()
    assert summarise(record).targets[0].meets_latency_target is None
    final = summarise(record).targets[0].final
    assert final is not None
    prune = {"max_accuracy_drop": 0.01, "latency_target_ms": share * final.latency_ms}
    config = synthetic_record.config(prune=prune)
    summary = summarise(record.model_copy(update={"config": config}))
    assert summary.targets[0].meets_latency_target is (share > 1.0)
    told = [line for line in results.lines(summary) if "latency target" in line]
    assert len(told) == 1 and told[0].endswith(f"ms {reached}")


def test_costs_are_sums_over_the_work() -> None:
    record = synthetic_record.record()
    target = summarise(record).targets[0]
    outcomes = [item.outcome for item in record.work]
    programs = sum(o.measured_programs for o in outcomes if isinstance(o, Tuned))
    programs += sum(
        o.tuned.measured_programs for o in outcomes if isinstance(o, Screened) and o.tuned
    )
    assert target.measured_programs == programs
    trained = [o.dense for o in outcomes if isinstance(o, Prepared)]
    trained += [o.network for o in outcomes if isinstance(o, FineTuned | UniformTrained)]
    assert target.train_s == pytest.approx(sum(network.train_s for network in trained))
    compared = sum(item.work.kind == "compare" for item in record.work)
    assert target.measured_models == 2 * compared + 3


def with_ratios(*ratios: float, dense_ms: float = 1.0, final_ms: float = 1.0) -> RunRecord:
    """A finished run with these paired ratios and medians."""
    record = synthetic_record.record()
    work = []
    for item in record.work:
        outcome = item.outcome
        if isinstance(outcome, Exported):
            changes = {"speedup_ratios": ratios}
            for name, ms in (("dense", dense_ms), ("final", final_ms)):
                network = getattr(outcome, name)
                latency = network.latency.model_copy(update={"run_ms": (ms,)})
                changes[name] = network.model_copy(update={"latency": latency})
            item = item.model_copy(update={"outcome": outcome.model_copy(update=changes)})
        work.append(item)
    return record.model_copy(update={"work": tuple(work)})


def test_a_device_that_was_slowed_down_is_told() -> None:
    record = synthetic_record.record()
    assert summarise(record).targets[0].device_slowed is None, "it has no fixed workload"
    for ratio, told in ((1.1, False), (1.8, True)):
        work = []
        for item in record.work:
            outcome = item.outcome
            if isinstance(outcome, Compared) and outcome.comparison is not None:
                after = outcome.comparison.candidate.model_copy(update={"canary_ratio": ratio})
                found = outcome.comparison.model_copy(update={"candidate": after})
                outcome = outcome.model_copy(update={"comparison": found})
            work.append(item.model_copy(update={"outcome": outcome}))
        slowed = record.model_copy(update={"work": tuple(work)})
        summary = summarise(slowed)
        assert summary.targets[0].device_slowed == ratio
        assert ("1.8 times as slow" in render(slowed, summary)) == told


def test_programs_that_computed_something_else_are_told_with_their_traces() -> None:
    record = synthetic_record.record()
    (tuned, *_) = [item.outcome for item in record.work if isinstance(item.outcome, Tuned)]
    task = tuned.table.tasks[0]
    wrong = Program(
        program_id="wrong",
        task_id=task.task_id,
        device_model="phone-4t",
        trace="[the trace]",
        source="search",
        measurement=None,
        error=f"{WRONG_RESULT}: differs by 1",
    )
    others = wrong.model_copy(update={"program_id": "of another run", "batch": SHARED_BATCH})
    record = record.model_copy(update={"condemned": (wrong, others)})
    summary = summarise(record)
    (told,) = summary.wrong_programs
    assert (told.task, told.device_model, told.trace) == (task.name, "phone-4t", "[the trace]")
    assert told.error == "wrong result: differs by 1"
    page = render(record, summary)
    assert "1 program computed something else" in page and "[the trace]" in page


def test_a_training_that_goes_on_counts_for_the_target_that_asked_for_it() -> None:
    record = synthetic_record.record()
    target = record.targets[0]
    step = next(step for step in target.steps if step.val_accuracy is not None)
    lost = fake_world.network(step.candidate.structure, 0.5)
    further = step.candidate.model_copy(update={"trained_from": lost, "trained_further": 1})
    works = [
        FineTuneWork(parent=parent, structure=parent.structure, epochs=9, learning_rate=0.1)
        for parent in (lost, step.candidate.parent, fake_world.network(Structure(), 0.4))
    ]
    outcome = FineTuned(network=fake_world.network(Structure(), 0.45))
    done = [WorkRecord(work=w, outcome=outcome, seconds=1.0, finished_at=0.0) for w in works]
    steps = (*target.steps, step.model_copy(update={"candidate": further}))
    two = record.config.model_copy(update={"targets": [*record.config.targets] * 2})
    record = record.model_copy(update={"work": (*record.work, *done), "config": two})
    own = work_of(record, target.model_copy(update={"steps": steps}))
    assert [item.work for item in own if item in done] == works[:2]


def test_the_long_training_of_a_network_that_was_pruned_on_counts_for_its_target() -> None:
    record = synthetic_record.record()
    target = record.targets[0]
    step = next(step for step in target.steps if step.accepted)
    recovered = fake_world.network(step.candidate.parent.structure, 0.98)
    begun = fake_world.network(recovered.structure, 0.97)
    work = FineTuneWork(parent=begun, structure=begun.structure, epochs=9, learning_rate=0.1)
    outcome = FineTuned(network=recovered)
    done = WorkRecord(work=work, outcome=outcome, seconds=1.0, finished_at=0.0)
    two = record.config.model_copy(update={"targets": [*record.config.targets] * 2})
    record = record.model_copy(update={"work": (*record.work, done), "config": two})
    assert done not in work_of(record, target)
    after = step.candidate.model_copy(update={"parent": recovered})
    steps = (*target.steps, step.model_copy(update={"candidate": after}))
    assert done in work_of(record, target.model_copy(update={"steps": steps}))


def test_where_the_search_went_on_the_figures_are_of_the_network_that_was_exported() -> None:
    whole = synthetic_record.record()
    before = summarise(whole).targets[0]
    narrower = fake_world.network(Structure(widths=dict.fromkeys(synthetic_record.GROUPS, 1)))
    changes = {"state": "proposing", "final": None, "current": narrower}
    target = whole.targets[0].model_copy(update=changes)
    after = summarise(whole.model_copy(update={"targets": (target,), "state": "running"}))
    assert after.targets[0].widths == before.widths
    assert after.targets[0].tasks_after == before.tasks_after
    assert before.notes == [] and "has gone on since" in after.targets[0].notes[0]


def test_a_run_that_accepted_no_step_has_no_speedup() -> None:
    target = summarise(synthetic_record.unpruned()).targets[0]
    assert target.speedup is target.speedup_low is None
    assert target.speedup_verdict == "dense" and target.speedup_comparisons == 0
    assert target.tasks_before and not target.tasks_after
    assert target.baseline and target.final
    told = in_words(target.speedup_verdict, target.speedup, target.speedup_comparisons)
    assert told == "no step was accepted: the result is the dense network"
    running = summarise(synthetic_record.record(finished=False, steps=0)).targets[0]
    assert running.tasks_before and not running.tasks_after


def test_a_driver_that_finds_no_step_says_so(tmp_path: Path) -> None:
    record = driver_world.go(tmp_path, fake_world.config(budget={"max_rounds": 0}))
    target = summarise(record).targets[0]
    assert (target.speedup, target.speedup_verdict) == (None, "dense")
    assert target.stopped_by.startswith("budget.max_rounds: 0 rounds done")
    message = record.events[-1].message
    assert message.startswith("no step was accepted: the result is the dense network, ")
    assert "->" not in message and "faster" not in message


@pytest.mark.parametrize(
    ("ratios", "final_ms", "verdict", "told"),
    [
        ([2.0 + 0.01 * i for i in range(10)], 0.49, "faster", "2.04x faster than the dense"),
        ([0.5 + 0.01 * i for i in range(10)], 1.84, "slower", "1.83x slower than the dense"),
        ([0.9 + 0.03 * i for i in range(10)], 1.0, "not_distinguishable", "x, not disting"),
        ([2.0] * 3, 0.5, "not_distinguishable", "(3 comparisons)"),
        ([2.0 + 0.01 * i for i in range(10)], 0.3, "too_noisy", "2.04x, too noisy to tell (10 "),
        ([16.0 + 0.01 * i for i in range(10)], 1 / 15.0, "faster", "16.05x faster than the dense"),
        ([1.05 + 0.001 * i for i in range(10)], 1 / 0.98, "too_noisy", "1.05x, too noisy"),
        ([1.001] * 10, 1 / 1.001, "faster", "as fast as the dense network"),
    ],
)
def test_the_verdict_is_what_the_pairs_tell(
    ratios: list[float], final_ms: float, verdict: str, told: str
) -> None:
    target = summarise(with_ratios(*ratios, final_ms=final_ms)).targets[0]
    assert target.speedup_verdict == verdict
    assert told in in_words(target.speedup_verdict, target.speedup, target.speedup_comparisons)


def empty() -> RunRecord:
    changes = {"work": (), "targets": (), "events": (), "phases_s": {}, "versions": {}}
    return synthetic_record.record(finished=False, steps=0).model_copy(update=changes)


def test_a_run_that_has_only_begun() -> None:
    target = summarise(empty()).targets[0]
    assert target.target == "host"
    assert target.baseline is target.final is target.speedup is target.speedup_low is None
    assert (target.steps, target.widths, target.tasks_before) == ([], {}, [])


def test_before_the_end_tasks_come_from_the_tuning_and_the_screening() -> None:
    record = synthetic_record.record(finished=False, steps=3)
    target = summarise(record).targets[0]
    assert target.final is None and target.accuracy_floor == 0.9761
    assert target.tasks_before and target.tasks_after
    assert any(kept < dense for dense, kept in target.widths.values())


def test_a_recording_is_labelled() -> None:
    assert summarise(synthetic_record.record(replay=True)).targets[0].simulated


def test_simulated_programs_label_the_target_before_a_network_is_measured() -> None:
    record = synthetic_record.record(finished=False, steps=0)
    assert not summarise(record).targets[0].simulated
    work = tuple(
        item.model_copy(update={"outcome": item.outcome.model_copy(update={"simulated": True})})
        if isinstance(item.outcome, Tuned)
        else item
        for item in record.work
    )
    assert summarise(record.model_copy(update={"work": work})).targets[0].simulated


def test_any_prefix_of_the_work_gives_a_summary() -> None:
    record = synthetic_record.record()
    for count in range(len(record.work) + 1):
        part = record.model_copy(update={"work": record.work[:count]})
        text = summary_text(summarise(part))
        jsonschema.validate(json.loads(text), summary_schema())
        assert "NaN" not in text and "Infinity" not in text


def test_schema_refuses_what_is_not_a_summary() -> None:
    summary = json.loads(summary_text(summarise(synthetic_record.record())))
    for change in ({"state": "sleeping"}, {"extra": 1}, {"targets": [{"target": "host"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**summary, **change}, summary_schema())


def test_lower_bound_is_the_sign_test() -> None:
    assert lower_bound([2.0] * 3, 0.97) is None
    assert lower_bound([], 0.97) is None
    ratios = [2.0 + 0.1 * i for i in range(10)]
    assert lower_bound(ratios, 0.97) == pytest.approx(2.1)  # P(at most 1 of 10) = 0.0107
    assert lower_bound(ratios, 0.999) == pytest.approx(2.0)  # P(0 of 10) = 0.00098
    assert lower_bound(list(reversed(ratios)), 0.97) == pytest.approx(2.1)
