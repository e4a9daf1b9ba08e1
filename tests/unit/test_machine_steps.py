"""The state machine, one step at a time, with canned outcomes."""

from __future__ import annotations

from typing import Any

import fake_world
import pytest
from machine_world import CLOCK, World

from orchestrator import machine
from orchestrator.finish import baseline_trials
from orchestrator.policies.whole import NAME
from orchestrator.search_parts import long_training
from orchestrator.states import (
    ALLOWED,
    TRANSITIONS,
    AnyState,
    Done,
    Exporting,
    Failed,
    FineTuning,
    FinishTraining,
    FinishTuning,
    Judging,
    Preparing,
    Proposing,
    Ranking,
    Retuning,
    Screening,
    Tuning,
    kind_of,
)
from orchestrator.transition import Clock, IllegalTransition, Transition
from schemas.network import Sensitivity, Structure
from schemas.work import (
    Compared,
    FineTuned,
    FineTuneWork,
    Prepared,
    PrepareWork,
    Screened,
    TuneWork,
    UniformWork,
)


def test_the_whole_way_of_a_target() -> None:
    world, state, kinds = World(fake_world.config()), machine.start("host"), []
    following: AnyState = state
    while not following.is_terminal:
        kinds.append(following.kind)
        following = world.step(following)
    assert isinstance(following, Done)
    assert kinds[:6] == ["preparing", "tuning", "ranking", "proposing", "screening", "fine_tuning"]
    assert kinds[-4:] == ["finish_training", "finish_tuning", "finish_tuning", "exporting"]
    assert following.search.accepted == 3
    assert following.final.structure == Structure(widths={"deep": 4})
    assert following.search.stopped_by.startswith("no step is left that pays")


def test_preparing_asks_for_the_uniform_network_where_it_is_wanted() -> None:
    state = machine.start("host")
    assert machine.work_of(state, fake_world.config()) == (PrepareWork(),)
    config = fake_world.config(compare_uniform=0.5)
    assert machine.work_of(state, config) == (PrepareWork(), UniformWork(fraction=0.5))


def test_the_floor_is_the_dense_accuracy_less_the_drop() -> None:
    state = World(fake_world.config()).step(machine.start("host"))
    assert isinstance(state, Tuning)
    assert state.search.floor == pytest.approx(0.94)


def test_a_floor_above_the_dense_accuracy_fails_with_one_sentence() -> None:
    world = World(fake_world.config(prune={"accuracy_floor": 0.99}))
    state = world.step(machine.start("host"))
    assert isinstance(state, Failed) and state.wrong_input
    for part in ("prune.accuracy_floor", "0.99", "0.9700", "set it to 0.97 or less"):
        assert part in state.error
    again = machine.resume(state, world.config, CLOCK)
    assert again is not None and isinstance(again.next_state, Preparing)


def test_the_advice_makes_sense_where_the_dense_network_has_learnt_nothing() -> None:
    world = World(fake_world.config(prune={"accuracy_floor": 0.5}))
    useless = Prepared(dense=fake_world.network(accuracy=0.0004), groups=fake_world.groups())
    state = world.step(machine.start("host"), {"prepare": useless})
    assert isinstance(state, Failed)
    assert "0.0004: train the dense network longer" in state.error


def test_an_equal_floor_is_no_failure() -> None:
    world = World(fake_world.config(prune={"accuracy_floor": 0.97}))
    assert isinstance(world.step(machine.start("host")), Tuning)


def test_a_rejected_task_is_set_aside_until_a_step_is_accepted() -> None:
    world = World(fake_world.config())
    judging = world.until(Judging)
    assert isinstance(judging, Judging)
    flat = judging.contenders[0].candidate.task_id
    rejected = world.step(judging)
    assert isinstance(rejected, Proposing)
    assert rejected.search.set_aside == (flat,)
    screening = world.step(rejected)
    assert isinstance(screening, Screening)
    assert all(candidate.task_id != flat for candidate in screening.candidates)
    following = world.step(world.step(world.step(screening)))
    assert isinstance(following, Retuning)
    assert following.search.set_aside == ()
    assert following.search.accepted == 1
    proposing = world.step(world.step(following))
    assert isinstance(proposing, Proposing)
    again = world.step(proposing)
    assert isinstance(again, Screening)
    assert again.candidates[0].task_name == "flat_32_48"


def test_an_accepted_step_is_retuned_in_the_changed_tasks_alone() -> None:
    world = World(fake_world.config())
    state = world.until(Retuning)
    assert isinstance(state, Retuning)
    assert set(state.modules) == {"deep", "head"}
    (work,) = machine.work_of(state, world.config)
    assert isinstance(work, TuneWork)
    assert work.added_trials and work.trials_per_task == 2 and work.modules == state.modules


def test_a_step_that_changed_no_task_is_timed_inside_the_network_too() -> None:
    """As when a block is taken out: no task is new, but what each takes there is."""
    world = World(fake_world.config())
    judging = state = world.until(Judging)
    while not isinstance(state, Retuning):
        judging = state if isinstance(state, Judging) else judging
        state = world.step(state)
    before = world.outcomes[judging.search.tuned_key]
    for key, outcome in world.outcomes.items():
        if isinstance(outcome, Screened):
            world.outcomes[key] = outcome.model_copy(update={"tuned": before})
    state = world.step(judging)
    assert isinstance(state, Retuning)
    (work,) = machine.work_of(state, world.config)
    assert isinstance(work, TuneWork) and work.modules == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": {"retune_trials_per_task": 0}},
        {"prune": {"max_accuracy_drop": 0.03, "without": ["transplants"]}},
    ],
)
def test_without_retuning_or_transplants_programs_are_chosen_inside_and_no_more(
    changes: dict[str, Any],
) -> None:
    world = World(fake_world.config(**changes))
    state = world.until(Retuning)
    (work,) = machine.work_of(state, world.config)
    assert isinstance(work, TuneWork) and work.network is not None
    assert work.added_trials and work.trials_per_task == 0
    ranking = world.step(state)
    assert isinstance(ranking, Ranking) and ranking.search.tuned_key == work.key


def test_the_budgets_end_the_search_well() -> None:
    world = World(fake_world.config(budget={"max_rounds": 0}))
    state = world.until(FinishTraining)
    assert isinstance(state, FinishTraining)
    assert "budget.max_rounds" in state.search.stopped_by

    world = World(fake_world.config(budget={"max_hours": 1.0}))
    proposing = world.until(Proposing)
    late = world.step(proposing, clock=Clock(wall_s=CLOCK.wall_s + 3600.0))
    assert isinstance(late, FinishTraining)
    assert "budget.max_hours" in late.search.stopped_by


def test_nothing_accepted_means_no_long_training() -> None:
    world = World(fake_world.config(budget={"max_rounds": 0}))
    state = world.until(FinishTraining)
    assert machine.work_of(state, world.config) == ()
    following = world.step(state)
    assert isinstance(following, FinishTuning)
    assert following.final == fake_world.network()


def test_long_training_below_the_floor_falls_back_to_the_accepted_weights() -> None:
    world = World(fake_world.config())
    state = world.until(FinishTraining)
    assert isinstance(state, FinishTraining)
    bad = FineTuned(network=fake_world.network(state.search.current.structure, 0.9))
    following = world.step(state, {"fine_tune": bad})
    assert isinstance(following, FinishTuning)
    assert following.final == state.search.current
    assert "below the floor" in world.messages[-1] and "are kept" in world.messages[-1]


def test_the_search_goes_on_with_what_the_long_training_regains() -> None:
    world = World(fake_world.config())
    state = world.until(FinishTraining)
    assert isinstance(state, FinishTraining) and state.search.ended_by_itself
    again = world.step(state)
    assert isinstance(again, Ranking)
    (work,) = machine.work_of(state, world.config)
    assert again.search.current.weights != state.search.current.weights
    assert again.search.trained_key == work.key
    assert again.search.recovered_after == len(state.search.decisions)
    assert again.search.stopped_by == "" and again.search.train_s > state.search.train_s
    assert "above the floor: the search goes on" in world.messages[-1]
    finishing = world.go_on(again, FinishTraining)
    assert machine.work_of(finishing, world.config) == (), "no step since: it is trained already"
    assert isinstance(world.step(finishing), FinishTuning)


def test_the_search_does_not_go_on_where_a_budget_ended_it_or_nothing_is_to_spare() -> None:
    world = World(fake_world.config(budget={"max_rounds": 2}))
    state = world.until(FinishTraining)
    assert isinstance(state, FinishTraining) and not state.search.ended_by_itself
    assert machine.work_of(state, world.config) != ()
    assert isinstance(world.step(state), FinishTuning)

    world = World(fake_world.config())
    state = world.until(FinishTraining)
    assert isinstance(state, FinishTraining)
    barely = fake_world.network(state.search.current.structure, state.search.floor + 0.001)
    following = world.step(state, {"fine_tune": FineTuned(network=barely)})
    assert isinstance(following, FinishTuning) and following.final == barely


def test_a_long_training_that_follows_another_is_gentler() -> None:
    config = fake_world.config(fine_tune={"long_epochs": 4})
    rates = config.fine_tune
    short, narrower = fake_world.network(), Structure(widths={"flat": 8})
    long = short.model_copy(update={"epochs": 4})
    for start, structure, rate in (
        (short, short.structure, rates.long_learning_rate),
        (long, narrower, rates.long_learning_rate),
        (long, long.structure, rates.further_learning_rate),
    ):
        work = long_training(start, structure, short, config)
        assert work.epochs == 4 and work.learning_rate == rate
        assert work.parent == start and work.structure == structure
    assert rates.further_learning_rate < rates.long_learning_rate


@pytest.mark.parametrize("share", [0.9, 0.0])
def test_what_is_pruned_learns_from_the_dense_network(share: float) -> None:
    world = World(fake_world.config(fine_tune={"distillation": share}))
    state = world.until(FineTuning)
    while not isinstance(state, FinishTraining):
        for work in machine.work_of(state, world.config):
            if isinstance(work, FineTuneWork):
                assert work.teacher == (state.search.dense if share else None)
        state = world.step(state)
    (last,) = machine.work_of(state, world.config)
    assert isinstance(last, FineTuneWork)
    assert last.teacher == (state.search.dense if share else None)


def test_a_candidate_whose_training_diverges_is_rejected_and_the_search_goes_on() -> None:
    world = World(fake_world.config())
    state = world.until(FineTuning)
    assert isinstance(state, FineTuning)
    lost = FineTuned(
        network=fake_world.network(state.chosen[0].structure, 0.1),
        diverged="the loss became nan in epoch 1",
    )
    following = world.step(state, {"fine_tune": lost})
    assert isinstance(following, Proposing)
    decision = following.search.decisions[0]
    assert decision.reason.endswith("its training diverged, the loss became nan in epoch 1")
    assert isinstance(world.go_on(following, Done), Done)


@pytest.mark.parametrize("policy", ["parallel", "predictor", "paper", "netadapt", "original"])
def test_a_candidate_that_does_not_run_whole_is_rejected_and_the_search_goes_on(
    policy: str,
) -> None:
    prune = {"max_accuracy_drop": 0.03, "policy": policy}
    world = World(fake_world.config(prune=prune, budget={"max_rounds": 60}))
    state = world.until(Judging)
    assert isinstance(state, Judging)
    failed = Compared(comparison=None, failed="the whole network did not run", device_s=0.1)
    following = world.step(state, {"compare": failed})
    assert isinstance(following, Proposing)
    decided = {item.candidate.candidate_id for item in state.contenders}
    reasons = {d.candidate_id: d.reason for d in following.search.decisions}
    assert all(reasons[name] == "the whole network did not run" for name in decided)
    assert isinstance(world.go_on(following, Done), Done)


def prepared_with(**losses: float) -> Prepared:
    """These groups' losses rise with each part that is removed; of the others nothing is known."""
    steps = range(Sensitivity.PARTS + 1)
    return Prepared(
        dense=fake_world.network(),
        groups=fake_world.groups(),
        sensitivities=tuple(
            Sensitivity(group_id=name, losses=tuple(loss * i for i in steps))
            for name, loss in losses.items()
        ),
    )


def test_a_group_without_a_transplant_does_not_stop_cuts_of_the_whole() -> None:
    prepared, world = prepared_with(stem=0.1, deep=0.1), World(fake_world.config())
    proposed: list[tuple[str, ...]] = []
    state: AnyState = machine.start("host")
    while not state.is_terminal and len(proposed) < 2:
        state = world.step(state, {"prepare": prepared})
        if isinstance(state, Screening):
            whole = [item for item in state.candidates if item.task_name == NAME]
            proposed += [item.groups for item in whole][:1]
    assert "stem" in proposed[0] and proposed[1] == ("deep",)


def test_a_recovery_is_a_long_training_in_the_middle_of_the_search() -> None:
    """Cuts of the whole network that take from ``fragile`` lose, a step of ``deep`` is taken."""
    prepared = prepared_with(deep=0.1, fragile=0.2)
    world, state = World(fake_world.config()), machine.start("host")
    following: AnyState = state
    while not isinstance(following, FinishTraining):
        following = world.step(following, {"prepare": prepared})
    assert following.goes_on and following.search.stopped_by == ""
    assert any(item.lost_accuracy for item in following.search.decisions)
    assert "trained for long first" in world.messages[-1]
    (work,) = machine.work_of(following, world.config)
    barely = fake_world.network(following.search.current.structure, following.search.floor)
    again = world.step(following, {"fine_tune": FineTuned(network=barely)})
    assert isinstance(again, Ranking), "it goes on whatever was regained"
    assert again.search.current == barely and again.search.trained_key == work.key


def test_the_papers_search_does_not_go_on() -> None:
    paper = {"max_accuracy_drop": 0.03, "policy": "paper"}
    world = World(fake_world.config(prune=paper))
    assert isinstance(world.step(world.until(FinishTraining)), FinishTuning)


def test_the_rivals_get_the_final_networks_trials() -> None:
    world = World(fake_world.config(compare_uniform=0.5))
    state = world.until(FinishTuning)
    (final,) = machine.work_of(state, world.config)
    assert isinstance(final, TuneWork) and final.trials_per_task == 8
    second = world.step(state)
    (uniform,) = machine.work_of(second, world.config)
    assert isinstance(uniform, TuneWork)
    assert (uniform.network, uniform.fraction) == (state.search.uniform, 0.5)
    assert uniform.network is not None
    third = world.step(second)
    (baseline,) = machine.work_of(third, world.config)
    assert isinstance(baseline, TuneWork)
    assert baseline.network == fake_world.network()
    assert uniform.trials == {"deep": 14}
    assert baseline.trials["deep"] == 14, "and those of tasks that the uniform one tuned as well"
    assert isinstance(world.step(third), Exporting)


def test_without_a_uniform_network_the_baseline_is_next() -> None:
    world = World(fake_world.config())
    second = world.step(world.until(FinishTuning))
    (baseline,) = machine.work_of(second, world.config)
    assert isinstance(baseline, TuneWork) and baseline.network == fake_world.network()
    assert baseline.trials == {"deep": 14}


def test_trials_that_a_shared_task_got_for_the_uniform_network_are_the_baselines_too() -> None:
    final = fake_world.tuned(Structure(), "host")
    module, task_id = next((s.module, s.task_id) for s in final.table.subgraphs if s.module)
    shared = final.latency(task_id).model_copy(update={"lineage_trials": 30})
    foreign = shared.model_copy(update={"task_id": "of the uniform network alone"})
    uniform = final.model_copy(update={"latencies": (shared, foreign)})
    assert baseline_trials(final, 8).get(module, 8) < 30
    assert baseline_trials(final, 8, uniform)[module] == 30


def test_equal_training_for_two_targets_is_the_same_work() -> None:
    world = World(fake_world.config())
    state = world.until(FineTuning)
    assert isinstance(state, FineTuning)
    other = state.model_copy(update={"target": "other"})
    one, two = (machine.work_of(item, world.config) for item in (state, other))
    assert isinstance(one[0], FineTuneWork)
    assert [work.key for work in one] == [work.key for work in two]


def test_an_undeclared_transition_is_refused() -> None:
    following = Ranking(target="host", search=World(fake_world.config()).until(Tuning).search)  # type: ignore[union-attr]
    with pytest.raises(IllegalTransition, match="preparing may not be followed by ranking"):
        machine.checked(Preparing(target="host"), Transition(next_state=following, message=""))


def test_the_table_covers_every_state_and_reaches_each() -> None:
    kinds = {kind_of(state) for state in TRANSITIONS}
    assert len(kinds) == len(TRANSITIONS) == 15
    assert {before for before, _ in ALLOWED} == kinds
    assert {after for _, after in ALLOWED} == kinds
    terminal = {kind_of(state) for state in TRANSITIONS if state.is_terminal}
    assert terminal == {"done", "failed", "cancelled"}


def test_a_missing_program_gives_no_candidate_but_a_reason() -> None:
    world = World(fake_world.config())
    groups = tuple(
        group.model_copy(update={"prunable": group.group_id == "deep", "reason": "kept"})
        for group in fake_world.groups()
    )
    prepared = Prepared(dense=fake_world.network(), groups=groups)
    state = world.step(machine.start("host"), {"prepare": prepared})
    whole = fake_world.tuned(Structure(), "host")
    broken = whole.model_copy(
        update={
            "latencies": tuple(
                entry.model_copy(update={"program_id": None})
                if entry.task_id == whole.table.tasks[-1].task_id
                else entry
                for entry in whole.latencies
            )
        }
    )
    state = world.step(world.step(world.step(state, {"tune": broken})))
    assert isinstance(state, FinishTraining)
    assert "no program ran of the task of head" in state.search.stopped_by
