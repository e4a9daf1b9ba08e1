"""The latency model, the policy that asks it, and what the summary says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import fake_views
import fake_world
import numpy as np
import pytest
from machine_world import World
from scipy import stats

from orchestrator import machine
from orchestrator.policies import predictor
from orchestrator.policies.latency_model import (
    LatencyModel,
    Shape,
    predicted_ms,
    samples_of,
    samples_of_tasks,
    shapes_of,
)
from orchestrator.prediction import predictor_of
from orchestrator.states import AnyState, Done, Proposing, Screening, Tuning
from orchestrator.store.reader import target_record
from schemas.network import Structure
from schemas.record import WorkRecord
from schemas.table import KnownTask
from schemas.work import Tuned

DENSE = fake_world.tuned(Structure(), "host")
WIDTHS = dict(fake_world.LAYERS)


def shape(outputs: int, depth: int, pixels: int = 64) -> Shape:
    macs = outputs * depth * pixels
    return Shape(kind="conv2d", macs=macs, outputs=outputs, pixels=pixels, depth=depth)


def law(found: Shape) -> float:
    """A device on which widths that are no multiples of 8 take half as long again."""
    penalty = 1.0 if found.outputs % 8 == 0 else 1.5
    return 1e-6 * found.macs**0.9 * penalty


def samples(seed: int, count: int) -> dict[Shape, float]:
    numbers = np.random.default_rng(seed)
    found = {}
    for _ in range(count):
        one = shape(int(numbers.integers(4, 33)) * 4, int(numbers.integers(2, 33)) * 9)
        found[one] = law(one) * float(numbers.normal(1.0, 0.03))
    return found


def test_it_learns_what_multiplications_do_not_tell() -> None:
    model, unseen = LatencyModel(samples(0, 200)), list(samples(1, 60))
    truth = np.log([law(one) for one in unseen])
    errors = model.log_ms(unseen) - truth
    by_macs = np.log([one.macs for one in unseen])
    assert np.median(np.abs(errors - np.median(errors))) < 0.08
    left = by_macs - truth
    assert np.std(errors) < 0.5 * np.std(left - np.median(left))


def test_with_few_samples_it_goes_by_the_multiplications() -> None:
    wide, narrow = shape(64, 288), shape(32, 288)
    log_ratio = np.diff(LatencyModel(samples(0, 5)).log_ms([wide, narrow]))
    assert log_ratio == pytest.approx([-math.log(2)])


def test_equal_samples_give_an_equal_model() -> None:
    unseen = list(samples(1, 20))
    one, two = (LatencyModel(samples(0, 100)).log_ms(unseen) for _ in range(2))
    assert np.array_equal(one, two)


def test_a_depthwise_convolution_scales_with_its_channels_once() -> None:
    depthwise = Shape(kind="depthwise", macs=900, outputs=10, pixels=10, depth=9)
    assert depthwise.scaled(0.5, 0.5) == Shape("depthwise", 450, 5, 10, 9)
    assert shape(64, 288).scaled(0.5, 0.5).macs == shape(64, 288).macs / 4


def test_a_cut_changes_who_computes_and_who_reads_the_channels() -> None:
    model = LatencyModel({})
    told = predicted_ms(model, DENSE, fake_world.groups(), WIDTHS, {"flat": 24})
    by_name = {
        subgraph.module: DENSE.latency(subgraph.task_id).cost_ms
        for subgraph in DENSE.table.subgraphs
    }
    saved = (by_name["flat"] + by_name["deep"]) / 2
    assert told == pytest.approx(DENSE.sum_ms - saved, rel=1e-6)


def test_shapes_come_from_the_table() -> None:
    shapes = shapes_of(DENSE.table)
    widths = {
        subgraph.module: shapes[subgraph.task_id].outputs for subgraph in DENSE.table.subgraphs
    }
    assert {name: widths[name] for name in WIDTHS} == WIDTHS
    assert set(samples_of([DENSE]).values()) == {entry.latency_ms for entry in DENSE.latencies}


# ------------------------------------------------------------------------------ policy


def search(policy: str, *earlier: KnownTask, **prune: int) -> tuple[World, list[AnyState]]:
    settings = {"max_accuracy_drop": 0.03, "policy": policy, **prune}
    world = World(fake_world.config(prune=settings))
    dense = DENSE.model_copy(update={"earlier": earlier})
    states: list[AnyState] = []
    state: AnyState = machine.start("host")
    while not state.is_terminal:
        states.append(state)
        state = world.step(state, {"tune": dense} if isinstance(state, Tuning) else {})
    return world, [*states, state]


def task_of(one: Shape) -> KnownTask:
    """A task of another network, on a device whose latency is the square root of the work."""
    return KnownTask(
        task_id=str(one),
        kind=one.kind,
        macs=round(one.macs),
        output_shape=(1, 8, 8, round(one.outputs)),
        latency_ms=one.macs**0.5,
    )


def test_the_predictor_learns_from_what_earlier_runs_measured() -> None:
    earlier = [task_of(one) for one in samples(2, 200)]
    model = LatencyModel({**samples_of_tasks(earlier), **samples_of([DENSE])})
    _, states = search("predictor", *earlier)
    first = next(state for state in states if isinstance(state, Screening))
    for item in first.candidates:
        cut = dict(zip(item.groups, item.widths_after, strict=True))
        told = predicted_ms(model, DENSE, fake_world.groups(), WIDTHS, cut)
        by_work = predicted_ms(LatencyModel({}), DENSE, fake_world.groups(), WIDTHS, cut)
        assert item.predicted_ms == told != by_work


def test_the_predictor_screens_fewer_and_says_what_it_expects() -> None:
    world, few = search("predictor")
    prune = world.config.prune
    screened = [state for state in few if isinstance(state, Screening)]
    most = (prune.tasks_per_round + 1) * max(1, prune.widths_per_task // 2)
    assert all(len(state.candidates) <= most for state in screened)
    for state in few:
        if isinstance(state, Screening):
            assert all(item.predicted_ms is not None for item in state.candidates)
    assert isinstance(few[-1], Done) and few[-1].search.accepted > 0


def test_the_predictor_looks_at_other_tasks_where_it_expects_nothing_of_the_slowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told_ms(
        model: object,
        tuned: Tuned,
        groups: object,
        widths: object,
        cut: Mapping[str, int],
        blocks: object,
    ) -> float:
        return tuned.sum_ms * (1.0 if "flat" in cut else 0.5)

    world, states = search("predictor", tasks_per_round=1)
    first = next(state for state in states if isinstance(state, Proposing))
    assert first.ranking[0].name.startswith("flat")
    monkeypatch.setattr(predictor, "predicted_ms", told_ms)
    following = world.step(first)
    assert isinstance(following, Screening)
    cut = {group for item in following.candidates for group in item.groups}
    assert len(cut) == 1 and "flat" not in cut


def test_where_the_predictor_expects_nothing_the_best_cut_of_the_whole_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told_ms(model: object, tuned: Tuned, *_: object) -> float:
        return tuned.sum_ms

    monkeypatch.setattr(predictor, "predicted_ms", told_ms)
    (candidate,) = predictor.Predictor().propose(fake_views.view(per_round=1)).candidates
    assert candidate.task_id == ""
    without = predictor.Predictor().propose(fake_views.view(losses={}))
    assert not without.candidates and "expects too little" in without.passed_over[-1]


def test_a_run_tells_how_good_its_predictions_were() -> None:
    world, states = search("predictor")
    work = {}
    for state in states:
        for item in machine.work_of(state, world.config):
            outcome = world.outcomes[item.key]
            work[item.key] = WorkRecord(work=item, outcome=outcome, finished_at=0.0, seconds=1.0)
    steps = target_record(states[-1], work).steps
    found = predictor_of(steps)
    pairs = [
        (step.candidate.predicted_ms / step.parent_ms, step.screened_ms / step.parent_ms)
        for step in steps
        if step.candidate.predicted_ms and step.screened_ms and step.parent_ms
    ]
    assert found is not None and found.candidates == len(pairs) > 3
    assert found.median_error < 0.05
    assert found.rank_correlation == pytest.approx(stats.spearmanr(pairs).statistic)
    assert predictor_of(()) is None
