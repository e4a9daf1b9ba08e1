"""Proposing, screening, judging, retrying: what is decided, and why."""

from __future__ import annotations

import math
import random

import fake_world
import pytest
from scipy import stats

from orchestrator.policies.base import Proposal
from orchestrator.policies.candidates import rank_tasks
from orchestrator.policies.gates import (
    accuracy_refusal,
    latency_gate,
    meets_floor,
    t_cumulative,
    t_quantile,
)
from orchestrator.policies.judge import judge, pointless
from orchestrator.policies.propose import propose, spread
from orchestrator.policies.retry import Failure, decide
from orchestrator.policies.screen import Rejection, choose
from orchestrator.states import Contender
from schemas.config import PruneConfig
from schemas.network import Block, Structure
from schemas.table import Comparison
from schemas.work import Candidate, Screened

PRUNE = PruneConfig(max_accuracy_drop=0.05)


def proposal(
    set_aside: tuple[str, ...] = (), tried: tuple[str, ...] = (), **changes: object
) -> Proposal:
    tuned = fake_world.tuned(Structure(), "host", unit=4)
    config = PRUNE.model_copy(update=changes)
    return propose(
        rank_tasks(tuned),
        tuned,
        fake_world.groups(),
        fake_world.network(),
        set_aside,
        tried,
        config,
    )


def candidate(name: str, task: str = "t", widths: tuple[int, ...] = (8,)) -> Candidate:
    return Candidate(
        candidate_id=name,
        task_id=task,
        task_name=task,
        parent=fake_world.network(),
        structure=Structure(widths={"g": widths[0]}),
        groups=("g",),
        widths_before=(16,),
        widths_after=widths,
    )


def screened(name: str, candidate_ms: float, refused: str = "") -> Screened:
    return Screened(
        candidate_id=name, tuned=None, refused=refused, parent_ms=10.0, candidate_ms=candidate_ms
    )


def comparison(ratios: list[float]) -> Comparison:
    return Comparison(
        reference_ms=(10.0,) * len(ratios),
        candidate_ms=tuple(10.0 * ratio for ratio in ratios),
        reference=fake_world.measurement(10.0),
        candidate=fake_world.measurement(10.0),
    )


def test_tasks_are_ranked_by_latency_times_subgraphs() -> None:
    ranking = rank_tasks(fake_world.tuned(Structure(), "host"))
    totals = [task.total_ms for task in ranking]
    assert totals == sorted(totals, reverse=True)
    assert sum(task.share for task in ranking) == pytest.approx(1.0)
    assert ranking[0].name.startswith("flat")


def test_the_slowest_tasks_get_several_widths() -> None:
    found = proposal(tasks_per_round=2, widths_per_task=3).candidates
    assert [item.task_name.split("_")[0] for item in found] == ["flat"] * 3 + ["deep"] * 3
    assert [item.widths_after for item in found[:3]] == [(44,), (36,), (24,)]
    assert len({item.candidate_id for item in found}) == 6
    assert found[0].structure == Structure(widths={"flat": 44})


def test_what_is_set_aside_or_tried_is_passed_over() -> None:
    first = proposal(tasks_per_round=1).candidates
    other = proposal(set_aside=(first[0].task_id,), tasks_per_round=1)
    assert other.candidates[0].task_id != first[0].task_id
    assert other.passed_over[0].endswith("set aside")
    rest = proposal(tried=(first[0].candidate_id,), tasks_per_round=1).candidates
    assert [item.candidate_id for item in rest] == [first[1].candidate_id]
    done = proposal(tried=tuple(item.candidate_id for item in first), tasks_per_round=1)
    assert "every width proposed for it has been tried" in done.passed_over[0]


def test_groups_behind_one_task_are_cut_together_and_at_the_floor_apart_too() -> None:
    tuned = fake_world.tuned(Structure(), "host", unit=4)
    task_of = {site.module: site.task_id for site in tuned.table.subgraphs}
    shared = tuple(
        site.model_copy(update={"task_id": task_of["stem"]}) if site.module == "fragile" else site
        for site in tuned.table.subgraphs
    )
    table = tuned.table.model_copy(update={"subgraphs": shared})
    tuned = tuned.model_copy(update={"table": table})
    config = PRUNE.model_copy(update={"tasks_per_round": 9, "widths_per_task": 1})

    def cuts(at_the_floor: bool) -> set[tuple[str, ...]]:
        groups, parent = fake_world.groups(), fake_world.network()
        found = propose(
            rank_tasks(tuned), tuned, groups, parent, (), (), config, at_the_floor=at_the_floor
        ).candidates
        assert all(item.long_training == at_the_floor for item in found)
        return {item.groups for item in found if item.task_id == task_of["stem"]}

    assert cuts(at_the_floor=False) == {("stem", "fragile")}
    assert cuts(at_the_floor=True) == {("stem", "fragile"), ("stem",), ("fragile",)}


def test_at_the_floor_a_task_is_cut_to_finer_widths() -> None:
    tuned = fake_world.tuned(Structure(), "host", unit=16)
    config = PRUNE.model_copy(update={"tasks_per_round": 9, "widths_per_task": 1})

    def weakest(at_the_floor: bool) -> dict[str, int]:
        groups, parent = fake_world.groups(), fake_world.network()
        found = propose(
            rank_tasks(tuned), tuned, groups, parent, (), (), config, at_the_floor=at_the_floor
        ).candidates
        return {item.groups[0]: item.widths_after[0] for item in found}

    assert weakest(at_the_floor=False) == {"stem": 16, "fragile": 16, "flat": 32, "deep": 16}
    assert weakest(at_the_floor=True) == {"stem": 24, "fragile": 24, "flat": 40, "deep": 24}


def test_the_block_around_a_task_may_be_taken_out_too_once() -> None:
    tuned = fake_world.tuned(Structure(), "host", unit=4)
    block = Block(block_id="block", groups=("fragile", "flat"), layers=("fragile", "flat", "deep"))
    config = PRUNE.model_copy(update={"tasks_per_round": 9, "widths_per_task": 1})

    def taken_out(*tried: str, behind: str = "") -> list[Candidate]:
        groups, parent = fake_world.groups(), fake_world.network()
        ranking = [task for task in rank_tasks(tuned) if task.name.startswith(behind)]
        found = propose(ranking, tuned, groups, parent, (), tried, config, blocks=[block])
        return [item for item in found.candidates if item.structure.gone]

    (found,) = taken_out()
    assert found.structure.gone == set(block.groups)
    assert (found.widths_before, found.widths_after) == ((32, 48), (0, 0))
    assert taken_out(found.candidate_id) == []
    assert taken_out(behind="deep") != [], "its layers are those that write to the sum, too"
    assert taken_out(behind="stem") == []


def test_groups_that_must_not_be_pruned_are_never_proposed() -> None:
    tuned = fake_world.tuned(Structure(), "host", unit=4)
    for kept in ([], ["flat"]):
        groups = [
            group.model_copy(update={"prunable": group.group_id in kept, "reason": "left out"})
            for group in fake_world.groups()
        ]
        parent = fake_world.network()
        found = propose(rank_tasks(tuned), tuned, groups, parent, (), (), PRUNE).candidates
        assert {name for item in found for name in item.groups} == set(kept)


def test_no_group_is_proposed_narrower_than_its_least_width() -> None:
    narrow = min(width for item in proposal().candidates for width in item.widths_after)
    found = proposal(min_widths={"*": narrow + 1}).candidates
    assert found
    assert all(width > narrow for item in found for width in item.widths_after)
    assert proposal(min_widths={"nothing*": narrow + 1}) == proposal()
    assert proposal(min_widths={"*": 10_000}).candidates == ()


def test_the_spread_goes_from_one_unit_to_half() -> None:
    cuts = [candidate(str(width), widths=(width,)) for width in range(60, 0, -4)]
    for given, count, kept in (
        (cuts, 1, [60]),
        (cuts, 2, [60, 32]),
        (cuts, 3, [60, 48, 32]),
        (cuts[:2], 4, [60, 56]),
        (cuts[3:], 2, [48, 32]),
        ([], 2, []),
    ):
        assert [item.widths_after[0] for item in spread(given, count, now=64)] == kept


def test_screening_takes_different_tasks_first() -> None:
    pairs = [
        (candidate("a", "one"), screened("a", 5.0)),
        (candidate("b", "one"), screened("b", 6.0)),
        (candidate("c", "two"), screened("c", 8.0)),
        (candidate("d", "three"), screened("d", 9.95)),
        (candidate("e", "four"), screened("e", 0.0, refused="no transplant")),
    ]
    found = choose(pairs, PRUNE)
    assert [item.candidate_id for item in found.chosen] == ["a", "c"]
    assert [item.candidate_id for item in found.waiting] == ["b"]
    reasons = {item.candidate.candidate_id: item.reason for item in found.rejected}
    assert reasons["d"] == "screened at 9.95 ms, above 9.9 ms (0.99 of the parent's 10 ms)"
    assert reasons["e"] == "refused: no transplant"


def test_after_the_whole_network_what_gains_most_for_the_loss_expected_is_trained() -> None:
    gains = {"deep": (4.0, 9.0), "costly": (3.0, 9.0), "cheap": (8.0, 0.5), "tiny": (9.8, 0.0)}
    pairs = [
        (
            candidate(name).model_copy(
                update={"expected_loss": loss, "task_id": "" if name == "deep" else name}
            ),
            screened(name, after_ms),
        )
        for name, (after_ms, loss) in gains.items()
    ]
    found = choose(pairs, PRUNE)
    assert [item.candidate_id for item in found.chosen] == ["deep", "cheap"]
    assert [item.candidate_id for item in found.waiting] == ["costly", "tiny"]


def test_a_single_task_gets_a_long_training_only_for_what_a_gate_can_tell() -> None:
    for share, task, long, chosen in (
        (0.96, "task", True, False),
        (0.94, "task", True, True),
        (0.96, "task", False, True),
        (0.96, "", True, True),
    ):
        item = candidate("a", task).model_copy(update={"long_training": long})
        assert bool(choose([(item, screened("a", 10.0 * share))], PRUNE).chosen) == chosen
    further = candidate("a", "task").model_copy(
        update={"long_training": True, "trained_from": item.parent}
    )
    assert choose([(further, screened("a", 9.6))], PRUNE).chosen, "it was screened before"


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30])
@pytest.mark.parametrize("probability", [0.51, 0.9, 0.97, 0.999])
def test_the_t_distribution(degrees: int, probability: float) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-8)
    assert t_cumulative(expected, degrees) == pytest.approx(probability, rel=1e-9)


def test_the_latency_gate_needs_the_bound() -> None:
    clear = latency_gate(comparison([0.90, 0.91, 0.89, 0.90]), 0.99, 0.97)
    assert clear.passed and clear.ratio == pytest.approx(0.90, abs=1e-3) and clear.bound < 0.92
    noisy = latency_gate(comparison([0.70, 1.10, 0.80, 1.00]), 0.99, 0.97)
    assert not noisy.passed and noisy.ratio < 0.99 < noisy.bound
    assert not latency_gate(comparison([0.5]), 0.99, 0.97).passed


@pytest.mark.parametrize("pairs", [3, 10])
def test_the_gate_accepts_falsely_no_more_often_than_it_says(pairs: int) -> None:
    chance = random.Random(5)
    trials = 4000

    def rate(true_ratio: float) -> float:
        passed = 0
        for _ in range(trials):
            logs = [math.log(true_ratio) + chance.gauss(0.0, 0.03) for _ in range(pairs)]
            found = latency_gate(comparison([math.exp(log) for log in logs]), 0.99, 0.97)
            passed += found.passed
        return passed / trials

    assert rate(0.99) < 0.03 + 3 * math.sqrt(0.03 * 0.97 / trials)
    assert rate(1.0) < 0.03
    if pairs == 10:
        assert rate(0.93) > 0.95


def test_the_accuracy_gate() -> None:
    assert accuracy_refusal(0.96, 0.97, 0.98, 0.96) == ""
    assert accuracy_refusal(0.97 - 0.01, 0.97, 0.98, 0.97 - 0.01) == ""
    assert "below the floor of 0.9600" in accuracy_refusal(0.9599, 0.97, 0.98, 0.96)
    told = accuracy_refusal(0.90, 0.97, 0.98, 0.5)
    assert told == "validation accuracy 0.9000, below 0.9506 (0.98 of the parent's 0.9700)"
    assert meets_floor(0.98 - 0.01, 0.97) and not meets_floor(0.9699, 0.97)


def contender(name: str, accuracy: float) -> Contender:
    return Contender(candidate=candidate(name), network=fake_world.network(accuracy=accuracy))


def test_the_best_latency_for_the_accuracy_is_accepted() -> None:
    pairs = [
        (contender("fast", 0.940), comparison([0.50, 0.51, 0.50])),
        (contender("kind", 0.970), comparison([0.80, 0.81, 0.80])),
        (contender("slow", 0.970), comparison([1.00, 1.01, 1.00])),
    ]
    verdict = judge(pairs, 0.97, PRUNE)
    assert verdict.accepted == "kind"
    assert verdict.reasons["kind"].startswith("accepted: 0.80")
    assert "gains" in verdict.reasons["fast"] and "0.9400" in verdict.reasons["fast"]
    assert verdict.reasons["slow"].endswith("above 0.99")


def test_no_accuracy_lost_is_no_division_by_zero() -> None:
    pairs = [
        (contender("a", 0.99), comparison([0.8, 0.8, 0.8])),
        (contender("b", 0.97), comparison([0.7, 0.7, 0.7])),
    ]
    assert judge(pairs, 0.97, PRUNE).accepted == "b"
    assert judge([], 0.97, PRUNE).accepted is None


def test_deeper_cuts_than_a_failed_one_are_not_trained() -> None:
    failed = [Rejection(candidate=candidate("x", widths=(8,)), reason="too low")]
    waiting = [candidate("deeper", widths=(4,)), candidate("weaker", widths=(12,))]
    joint = candidate("joint", widths=(8, 4)).model_copy(update={"groups": ("g", "h")})
    other = candidate("other", widths=(4,)).model_copy(update={"groups": ("h",)})
    found = pointless([*waiting, joint, other], failed)
    assert [item.candidate.candidate_id for item in found] == ["deeper", "joint"]
    assert found[0].reason == "not trained: the weaker cut to 8 lost too much: too low"
    longer = [item.model_copy(update={"long_training": True}) for item in waiting]
    assert pointless(longer, failed) == [], "what is trained for longer may hold"


def test_each_class_of_failure_has_its_own_budget() -> None:
    lost = Failure(kind="worker_lost", message="killed")
    assert decide(lost, 1).again and decide(lost, 3).again and not decide(lost, 4).again
    assert decide(lost, 1).message == "worker lost: killed (tried again: 1 (max 3))"
    gone = Failure(kind="device_lost", message="unplugged")
    assert decide(gone, 2).again and not decide(gone, 3).again
    assert decide(gone, 2).delay_s > decide(gone, 1).delay_s > 0
    assert not decide(Failure(kind="user_error", message="no such file"), 1).again
