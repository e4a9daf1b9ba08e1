"""The paper's policy and the baselines' ones, as decisions and in whole searches."""

from __future__ import annotations

from pathlib import Path

import fake_world
import pytest
from driver_world import decisions, go
from machine_world import World

from orchestrator import machine
from orchestrator.compare.searched import is_capped
from orchestrator.policies.base import View
from orchestrator.policies.candidates import rank_tasks
from orchestrator.policies.ladder import (
    HAD_ENOUGH,
    Attempt,
    Move,
    attempts_of,
    next_move,
    why_ended,
)
from orchestrator.policies.netadapt import STEP, NetAdapt
from orchestrator.policies.screen import Rejection
from orchestrator.search_parts import rejected
from orchestrator.states import (
    AnyState,
    Choosing,
    Decision,
    Done,
    Exporting,
    FineTuning,
    FinishTuning,
    Screening,
)
from schemas.config import PolicyName, RunConfig
from schemas.network import Structure
from schemas.record import TargetRecord
from schemas.work import (
    Candidate,
    Compared,
    CompareWork,
    FineTuned,
    Prepared,
    PrepareWork,
    Screened,
    ScreenWork,
    TuneWork,
)

LADDER = tuple(
    Structure(widths={"deep": 32 - 4 * rung, "flat": 48 - 4 * rung}) for rung in range(1, 8)
)


def config(policy: PolicyName, **prune: object) -> RunConfig:
    return fake_world.config(
        prune={"max_accuracy_drop": 0.03, "policy": policy, **prune}, budget={"max_rounds": 60}
    )


def search(policy: PolicyName, **prune: object) -> tuple[World, Done, list[AnyState]]:
    world, states = World(config(policy, **prune)), []
    state: AnyState = machine.start("host")
    while not state.is_terminal:
        states.append(state)
        canned = {}
        if policy == "global":
            dense = fake_world.outcome_of(PrepareWork())
            canned = {"prepare": dense.model_copy(update={"ladder": LADDER})}
        state = world.step(state, canned)
    assert isinstance(state, Done)
    return world, state, states


# ----------------------------------------------------------------------------- the ladder


def climb(rungs: int, lowest: int, least: int = 0) -> list[Move]:
    """All moves of a search in which rungs up to ``lowest`` meet the floor."""
    moves: list[Move] = []
    made: list[Attempt] = []
    while (move := next_move(rungs, made, had_enough=len(made) >= least)) is not None:
        moves.append(move)
        made.append(Attempt(move.recovers or move.rung <= lowest, move.recovers))
        assert len(moves) < 100
    return moves


@pytest.mark.parametrize("lowest", range(-1, 19))
def test_the_strongest_rung_that_meets_the_floor_is_found(lowest: int) -> None:
    moves = climb(19, lowest)
    reached = [move.rung for move in moves if not move.recovers and move.rung <= lowest]
    assert (reached[-1] if reached else -1) == lowest
    assert len(moves) <= 19


@pytest.mark.parametrize("lowest", range(39))
def test_no_rung_is_tried_below_one_that_missed_unless_a_training_lies_between(lowest: int) -> None:
    missed = 39
    for move in climb(39, lowest):
        if move.recovers:
            missed = 39
        assert move.rung <= missed
        missed = move.rung if move.rung > lowest else missed


def test_a_rung_is_tried_again_after_further_training() -> None:
    moves = climb(19, 5)
    assert moves[-2:] == [Move(5, recovers=True), Move(6, recovers=False)]


def test_more_candidates_are_tried_where_the_other_side_had_more() -> None:
    assert len(climb(19, 5, least=20)) >= 20 > len(climb(19, 5))


def test_a_training_is_counted_once() -> None:
    """The long one at the end is that of the last attempt."""
    world, done, _ = search("uniform", least_candidates=100)
    trained = [item.network for item in world.outcomes.values() if isinstance(item, FineTuned)]
    assert done.search.train_s == pytest.approx(sum(network.train_s for network in trained))


MET, MISSED = Attempt(met=True), Attempt(met=False)
GAINED, LOST = Attempt(met=True, recovers=True), Attempt(met=False, recovers=True)


def test_training_that_costs_accuracy_ends_the_climb() -> None:
    assert next_move(4, [MET, MISSED]) == Move(0, recovers=True)
    for had_enough in (True, False):
        assert next_move(4, [MET, MISSED, LOST], had_enough=had_enough) is None


DOWN = [MET, MISSED, GAINED, MISSED]
"""Rung 0, not 1; further training; still not 1."""


def test_a_climb_that_might_have_gone_on_with_more_training_says_so() -> None:
    assert next_move(4, DOWN) is None and why_ended(4, DOWN) == HAD_ENOUGH
    gained_nothing = [MET, MISSED, LOST]
    assert why_ended(4, gained_nothing) == "the floor does not allow a narrower one"
    target = TargetRecord(
        target="host",
        state="done",
        accuracy_floor=0.9,
        current=None,
        final=None,
        steps=(),
        stopped_by=f"no step is left that pays ({HAD_ENOUGH})",
    )
    assert is_capped(target)


def test_the_climb_goes_on_after_a_long_training() -> None:
    assert next_move(4, DOWN) is None
    assert next_move(4, DOWN, len(DOWN)) == Move(1, recovers=False)
    assert next_move(4, [*DOWN, MET], len(DOWN)) == Move(2, recovers=False)
    assert next_move(4, [*DOWN, MISSED], len(DOWN)) is None


def test_after_another_long_training_it_goes_on_below_what_was_reached_since_the_first() -> None:
    lower = [*DOWN, *DOWN]  # after the first long training rung 1, not 2
    assert next_move(4, lower, len(DOWN)) is None
    assert next_move(4, lower, len(lower)) == Move(2, recovers=False)
    assert next_move(4, [*lower, MET], len(lower)) == Move(3, recovers=False)


def test_there_is_nothing_to_climb_on_an_empty_ladder() -> None:
    assert next_move(0, []) is None


def decision(*, accepted: bool = False, trained_further: int = 0) -> Decision:
    return Decision(
        round=1,
        candidate_id="a",
        task_id="",
        task_name="95% of every width",
        groups=(),
        structure=Structure(),
        screen_key=None,
        accepted=accepted,
        reason="",
        trained_further=trained_further,
    )


def test_a_rung_that_was_trained_further_is_one_attempt() -> None:
    first, further = decision(), decision(accepted=True, trained_further=1)
    narrower = first.model_copy(update={"structure": Structure(widths={"deep": 8})})
    assert attempts_of([first]) == [MISSED]
    assert attempts_of([first, further]) == [MET]
    assert attempts_of([first, further, narrower]) == [MET, MISSED]


def test_a_candidate_at_the_widths_that_were_reached_is_a_recovery() -> None:
    reached = decision(accepted=True)
    assert attempts_of([reached, decision()]) == [MET, LOST]
    further = decision(accepted=True, trained_further=1)
    assert attempts_of([reached, decision(), further]) == [MET, GAINED]


# ------------------------------------------------------------------------ whole searches


@pytest.mark.parametrize("policy", ["uniform", "global"])
def test_ladder_policies_look_at_the_accuracy_alone(policy: PolicyName) -> None:
    world, done, states = search(policy, max_accuracy_drop=0.2, min_width_fraction=0.3)
    assert not any(isinstance(state, Screening) for state in states)
    assert not any(
        work.kind in ("screen", "compare")
        for state in states
        if not isinstance(state, Choosing)
        for work in machine.work_of(state, world.config)
    )
    assert done.search.accepted > 0
    assert done.final.val_accuracy >= done.search.floor
    assert done.search.stopped_by.startswith("no step is left that pays")


@pytest.mark.parametrize(("drop", "why"), [(0.005, "the floor does not"), (0.9, "the ladder has")])
def test_it_is_told_whether_the_floor_or_the_ladder_ended_the_climb(drop: float, why: str) -> None:
    _, done, _ = search("global", max_accuracy_drop=drop)
    assert why in done.search.stopped_by


def test_a_ladder_without_a_rung_does_not_blame_the_floor() -> None:
    _, done, _ = search("uniform", max_accuracy_drop=0.2, min_widths={"*": 999})
    assert "no group can be narrower" in done.search.stopped_by


@pytest.mark.parametrize("policy", ["uniform", "global"])
def test_ladders_keep_to_the_least_widths(policy: PolicyName) -> None:
    """No group gets wider than it was, either."""
    _, done, states = search(policy, max_accuracy_drop=0.2, min_widths={"deep": 30, "stem": 99})
    chosen = [s.chosen[0].structure.widths for s in states if isinstance(s, FineTuning)]
    assert {widths["deep"] for widths in chosen} == {30} and done.search.accepted > 0
    assert {widths["stem"] for widths in chosen} == {32}


@pytest.mark.parametrize("before_is_faster", [True, False])
def test_the_faster_network_before_or_after_a_ladders_last_step_is_the_final_one(
    before_is_faster: bool,
) -> None:
    """Both tuned alike and compared: the last widths may be such that no vector divides them."""
    world, done, states = search("uniform", max_accuracy_drop=0.2)
    found, wider = done.search, done.search.wider
    assert wider is not None and wider.val_accuracy >= found.floor
    narrower = found.current.structure.widths
    assert all(wider.structure.widths[name] > width for name, width in narrower.items())

    state = next(state for state in states if isinstance(state, FinishTuning))
    networks = []
    while isinstance(state, FinishTuning):
        (work,) = machine.work_of(state, world.config)
        assert isinstance(work, TuneWork)
        networks.append((work.network, work.trials_per_task))
        state = world.step(state)
    trials = world.config.tune.final_trials_per_task
    assert networks == [(found.current, trials), (wider, trials)]

    (work,) = machine.work_of(state, world.config)
    assert isinstance(work, CompareWork)
    assert (work.reference, work.candidate) == (wider, found.current)
    compared = fake_world.outcome_of(work)
    assert isinstance(compared, Compared)
    factor = 2.0 if before_is_faster else 0.5
    pairs = compared.comparison.reference_ms
    comparison = compared.comparison.model_copy(
        update={"candidate_ms": tuple(factor * latency_ms for latency_ms in pairs)}
    )
    spent_s = state.search.device_s
    world.outcomes[work.key] = compared.model_copy(update={"comparison": comparison})
    state = world.step(state)
    assert isinstance(state, FinishTuning)
    assert state.search.device_s == pytest.approx(spent_s + compared.device_s)
    assert state.final == (wider if before_is_faster else found.current)
    exporting = world.go_on(state, Exporting)
    assert isinstance(exporting, Exporting) and exporting.final == state.final


def test_a_network_after_a_ladders_last_step_that_does_not_run_is_not_the_final_one() -> None:
    world, _, states = search("uniform", max_accuracy_drop=0.2)
    state = next(state for state in states if isinstance(state, Choosing))
    (work,) = machine.work_of(state, world.config)
    world.outcomes[work.key] = Compared(comparison=None, failed="it did not run", device_s=0.5)
    following = world.step(state)
    assert isinstance(following, FinishTuning) and following.final == state.wider
    assert following.search.device_s == pytest.approx(state.search.device_s + 0.5)
    assert world.messages[-1].endswith("it did not run")


def test_uniform_pruning_cuts_every_group_alike() -> None:
    _, _, states = search("uniform", max_accuracy_drop=0.2, min_width_fraction=0.5)
    chosen = [s.chosen[0].structure for s in states if isinstance(s, FineTuning)]
    shares = {
        name: [structure.widths[name] / channels for structure in chosen]
        for name, channels in fake_world.LAYERS.items()
    }
    for values in shares.values():
        assert values == pytest.approx(shares["deep"], abs=0.03)
        assert min(values) >= 0.5


def test_a_run_of_a_ladder_can_be_read_and_gone_on_with(tmp_path: Path) -> None:
    record = go(tmp_path / "a", config("uniform", min_width_fraction=0.3))
    again = go(tmp_path / "a", config("uniform", min_width_fraction=0.3))
    assert record.state == "done" and decisions(record) == decisions(again)
    steps = record.targets[0].steps
    assert steps[0].candidate.groups == tuple(sorted(fake_world.LAYERS))
    assert steps[0].candidate.widths_before == (32, 48, 32, 32)
    assert all(step.screened_ms is None and step.comparison is None for step in steps)


def test_the_papers_policy_tries_one_candidate_at_a_time_from_the_slowest_task_on() -> None:
    _, done, states = search("paper")
    screened = [state for state in states if isinstance(state, Screening)]
    assert all(len(state.candidates) == 1 for state in screened)
    first = screened[0]
    with_widths = [task.task_id for task in first.ranking]
    assert first.candidates[0].task_id in with_widths[:2]
    assert done.search.accepted > 0


def test_the_papers_policy_never_returns_to_what_lost_its_accuracy() -> None:
    _, done, _ = search("paper")
    lost = [
        index
        for index, decision in enumerate(done.search.decisions)
        if decision.fine_tune_key and not decision.compare_key
    ]
    assert len(lost) == 1 and done.search.decisions[lost[0]].groups == ("fragile",)
    assert not any("fragile" in d.groups for d in done.search.decisions[lost[0] + 1 :])


def test_the_papers_policy_cuts_deeper_after_a_cut_that_was_not_faster() -> None:
    """``flat`` is never faster in the whole network: each time it is reached, one step deeper."""
    _, _, states = search("paper")
    widths = [
        state.candidates[0].widths_after
        for state in states
        if isinstance(state, Screening) and state.candidates[0].groups == ("flat",)
    ]
    assert len(widths) > 1 and widths == sorted(set(widths), reverse=True)


def test_the_originals_policy_tunes_every_task_again_for_every_candidate() -> None:
    world, _, states = search("original")
    works = [
        work
        for state in states
        for work in machine.work_of(state, world.config)
        if isinstance(work, ScreenWork)
    ]
    assert works and all(work.by == "search_all" for work in works)
    assert all(work.trials_per_task == world.config.tune.trials_per_task for work in works)
    assert not any(
        isinstance(work, TuneWork) and work.added_trials
        for state in states
        for work in machine.work_of(state, world.config)
    )


# ------------------------------------------------------------------------------ netadapt


def netadapt_view(*decisions: Decision, calls_ms: dict[str, float] | None = None) -> View:
    """``calls_ms``: what the layers take; as in the fake world where nothing is said."""
    programs = fake_world.tuned(Structure(), "host")
    if calls_ms:
        tasks = {site.task_id: site.module or "" for site in programs.table.subgraphs}
        latencies = tuple(
            entry.model_copy(update={"latency_ms": calls_ms[tasks[entry.task_id]]})
            for entry in programs.latencies
        )
        programs = programs.model_copy(update={"latencies": latencies})
    return View(
        search=fake_world.search(decisions=decisions),
        ranking=rank_tasks(programs),
        programs=programs,
        prepared=Prepared(dense=fake_world.network(), groups=fake_world.groups()),
        config=config("netadapt").prune,
    )


def saved(candidate: Candidate) -> float:
    """The share of the latency that a candidate's cut saves in this world."""
    before, after = (fake_world.tuned(s, "host") for s in (Structure(), candidate.structure))
    return 1.0 - after.sum_ms / before.sum_ms


def saving(candidate: Candidate, share: float) -> tuple[Candidate, Screened]:
    """The candidate, measured to save this share of the latency."""
    name = candidate.candidate_id
    return candidate, Screened(
        candidate_id=name, tuned=None, parent_ms=1.0, candidate_ms=1.0 - share
    )


def test_netadapt_cuts_each_group_as_far_as_the_step_asks_for_and_no_further() -> None:
    found = NetAdapt().propose(netadapt_view()).candidates
    assert [candidate.groups for candidate in found] == [(name,) for name in fake_world.LAYERS]
    for candidate in found:
        (name,), (width,) = candidate.groups, candidate.widths_after
        wider = candidate.model_copy(update={"structure": Structure(widths={name: width + 8})})
        assert saved(wider) < STEP <= saved(candidate) and width % 8 == 0


def test_netadapt_has_a_candidate_for_a_group_with_6_percent_of_the_latency() -> None:
    calls_ms = {"stem": 3.0, "fragile": 3.0, "flat": 47.0, "deep": 46.0, "head": 1.0}
    stem, *_ = NetAdapt().propose(netadapt_view(calls_ms=calls_ms)).candidates
    assert (stem.groups, stem.widths_before, stem.widths_after) == (("stem",), (32,), (16,))


def test_netadapt_leaves_a_group_out_that_cannot_save_the_step() -> None:
    calls_ms = {"stem": 1.0, "fragile": 2.0, "flat": 50.0, "deep": 46.0, "head": 1.0}
    proposal = NetAdapt().propose(netadapt_view(calls_ms=calls_ms))
    assert [item.groups for item in proposal.candidates] == [("fragile",), ("flat",), ("deep",)]
    (reason,) = proposal.passed_over
    assert reason == "stem: no width is expected to save 3 ms"


def test_netadapt_trains_all_that_were_measured_to_save_the_step() -> None:
    slow, *fast = NetAdapt().propose(netadapt_view()).candidates
    pairs = [saving(slow, 0.9 * STEP), *(saving(item, 1.1 * STEP) for item in fast)]
    choice = NetAdapt().choose(pairs, config("netadapt").prune)
    assert sorted(choice.chosen, key=fast.index) == fast and not choice.waiting
    assert [rejection.candidate for rejection in choice.rejected] == [slow]


def a_slow_candidate() -> tuple[list[Candidate], Decision]:
    """The first round's candidates, and what is decided if the first one saves too little."""
    state = World(config("netadapt")).until(Screening)
    assert isinstance(state, Screening)
    rejection = Rejection(candidate=state.candidates[0], reason="saves too little")
    return list(state.candidates), rejected(state, rejection, config("netadapt"), not_faster=True)


def test_netadapt_cuts_deeper_after_a_cut_that_saved_less_than_predicted() -> None:
    (slow, *others), decision = a_slow_candidate()
    deeper, *rest = NetAdapt().propose(netadapt_view(decision)).candidates
    assert deeper.groups == slow.groups and deeper.widths_after < slow.widths_after
    assert saved(deeper) >= 1.5 * saved(slow) - 1e-9 and rest == others


def test_netadapt_asks_for_the_step_alone_once_the_group_has_been_cut() -> None:
    (first, *_), decision = a_slow_candidate()
    slow = decision.model_copy(update={"candidate_id": "of an earlier network"})
    taken = slow.model_copy(update={"accepted": True, "not_faster": False})
    again, *_ = NetAdapt().propose(netadapt_view(slow, taken)).candidates
    assert again == first


def test_netadapt_takes_the_most_accurate_candidate_of_a_round() -> None:
    world, done, states = search("netadapt", min_width_fraction=0.5)
    for state in states:
        compared = [w for w in machine.work_of(state, world.config) if isinstance(w, CompareWork)]
        assert len(compared) <= 1
    taken = [decision for decision in done.search.decisions if decision.accepted]
    assert len({decision.round for decision in taken}) == len(taken) == done.search.accepted > 0
    for decision in taken:
        trained = [
            other.val_accuracy
            for other in done.search.decisions
            if other.round == decision.round and other.val_accuracy is not None
        ]
        assert len(trained) > 1 and decision.val_accuracy == max(trained)


# ---------------------------------------------------------------------- what is left out


def test_without_transplants_candidates_are_searched() -> None:
    world, _, states = search("parallel", without=["transplants"])
    works = [w for s in states for w in machine.work_of(s, world.config)]
    assert {work.by for work in works if isinstance(work, ScreenWork)} == {"search"}


def test_without_structure_widths_are_tenths() -> None:
    _, _, states = search("parallel", without=["structure"])
    first = next(state for state in states if isinstance(state, Screening))
    for candidate in first.candidates:
        for name, width in zip(candidate.groups, candidate.widths_after, strict=True):
            channels = fake_world.LAYERS[name]
            assert (channels - width) % round(channels / 10) == 0
