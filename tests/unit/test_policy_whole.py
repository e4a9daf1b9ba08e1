"""Cuts of the whole network: where they cut, and how deep after what has been lost."""

from __future__ import annotations

import math
from dataclasses import replace

import fake_world
import pytest
from fake_views import UNIT, kept, lost, view

from orchestrator.policies.base import Proposal, View
from orchestrator.policies.candidates import is_within, rank_tasks
from orchestrator.policies.further import trained_further
from orchestrator.policies.parallel import Parallel
from orchestrator.policies.whole import FIRST_SHARES, NAME, needs_recovery, whole_cuts
from orchestrator.search_parts import fine_tuning
from orchestrator.states import Decision
from schemas.network import Structure
from schemas.work import Candidate


def test_the_first_cuts_keep_what_they_are_to_keep_of_the_latency() -> None:
    found = whole_cuts(view())
    assert [item.task_name for item in found] == [NAME, NAME]
    assert all(item.long_training for item in found)
    for candidate, share in zip(found, FIRST_SHARES, strict=True):
        assert share - 0.1 < kept(candidate) <= share


def test_widths_keep_the_programs_structure_and_half_of_each_group() -> None:
    for candidate in whole_cuts(view()):
        for group, width in candidate.structure.widths.items():
            assert width % UNIT == 0 and width >= fake_world.LAYERS[group] / 2


def test_without_associated_groups_only_the_first_behind_each_task_gives() -> None:
    seen = view()
    (stem, other) = (
        next(site.task_id for site in seen.programs.table.subgraphs if site.module == name)
        for name in ("stem", "fragile")
    )
    subgraphs = tuple(
        site.model_copy(update={"task_id": stem}) if site.task_id == other else site
        for site in seen.programs.table.subgraphs
    )
    table = seen.programs.table.model_copy(update={"subgraphs": subgraphs})
    programs = seen.programs.model_copy(update={"table": table})
    config = seen.config.model_copy(update={"without": ["associated"]})
    alone = replace(seen, programs=programs, ranking=rank_tasks(programs), config=config)
    together = replace(alone, config=seen.config)
    assert "fragile" in whole_cuts(together)[0].groups
    cuts = whole_cuts(alone)
    assert cuts and all("fragile" not in candidate.groups for candidate in cuts)


def test_groups_give_where_most_latency_goes_for_least_loss() -> None:
    _, weak = whole_cuts(view(losses={"stem": 1.0, "fragile": 1e3, "flat": 1.0, "deep": 1.0}))
    assert "fragile" not in weak.structure.widths
    _, weak = whole_cuts(view(losses={"stem": 1.0, "fragile": 1e-9, "flat": 1.0, "deep": 1.0}))
    assert weak.structure.widths["fragile"] == fake_world.LAYERS["fragile"] / 2


def test_a_group_that_has_given_more_gives_less_than_its_sensitivity_lets_expect() -> None:
    narrow = Structure(widths={"flat": fake_world.LAYERS["flat"] // 2})
    costs = {"stem": 1e3, "flat": 1.0, "deep": 1e3}  # of all channels there are now
    for fragile, gives in ((1.0, "fragile"), (1.5, "fragile"), (1e3, "flat")):
        found = whole_cuts(view(structure=narrow, losses={**costs, "fragile": fragile}))
        changed = {
            name: kept / narrow.widths.get(name, fake_world.LAYERS[name])
            for name, kept in found[-1].structure.widths.items()
        }
        assert min(changed, key=lambda name: changed[name]) == gives


def test_without_sensitivities_there_is_none() -> None:
    assert whole_cuts(view(losses={})) == []


def test_a_width_that_no_share_tells_exactly_is_passed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(fake_world.LAYERS, "stem", 200)
    assert 112 / 200 * 200 > 112
    found = whole_cuts(view(unit=8, losses={"stem": 1.0}))
    assert min(item.structure.widths["stem"] for item in found) == 104


def test_what_hardly_pays_is_no_cut_of_the_whole() -> None:
    assert whole_cuts(view(losses={"deep": 1.0}))
    assert whole_cuts(view(losses={"stem": 1.0})) == [], "half of it is 5 % of the latency"


def test_after_a_loss_the_next_cut_lies_half_way_on_a_scale_of_ratios() -> None:
    first = whole_cuts(view())[0]
    between, quarter = whole_cuts(view(lost(first)))
    assert kept(between) == pytest.approx(math.sqrt(kept(first)), abs=0.06)
    assert kept(quarter) > kept(between), "for when the deeper one is no faster"
    closer, *_ = whole_cuts(view(lost(first), lost(between)))
    assert kept(closer) > kept(between)


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6, 0.7])
def test_after_a_loss_a_cut_is_as_near_to_what_is_asked_as_its_units_allow(share: float) -> None:
    """Deeper by a whole unit would often be as deep as what was lost."""
    before = lost(whole_cuts(view())[0]).model_copy(update={"kept_share": share})
    following, *_ = whole_cuts(view(before))
    assert following.kept_share == pytest.approx(math.sqrt(share), abs=0.05)


def test_where_a_cut_was_lost_narrow_groups_have_widths_between_the_programs() -> None:
    """A half of a group at once is too much at the floor."""
    first = whole_cuts(view(unit=16))
    assert all(width % 16 == 0 for cut in first for width in cut.structure.widths.values())
    deeper = lost(first[0]).model_copy(update={"kept_share": 0.6})
    between, *_ = whole_cuts(view(deeper, unit=16))
    assert all(width % 8 == 0 for width in between.structure.widths.values())
    assert any(width % 16 for width in between.structure.widths.values())
    screened = lost(first[0]).model_copy(update={"fine_tune_key": None, "not_faster": True})
    again = whole_cuts(view(screened, unit=16))
    assert all(width % 16 == 0 for cut in again for width in cut.structure.widths.values())


def test_widths_that_were_no_faster_by_themselves_are_left_out() -> None:
    first = whole_cuts(view())[0]
    assert first.structure.widths == {"flat": 24, "fragile": 24}
    slow = lost(first).model_copy(
        update={
            "candidate_id": "alone",
            "task_id": "flat",
            "task_name": "flat_32_48",
            "groups": ("flat",),
            "fine_tune_key": None,
            "not_faster": True,
            "slower": ("flat",),
        }
    )
    again = whole_cuts(view(slow))[0].structure.widths
    assert again["flat"] == 28
    assert again["fragile"] <= 24, "that was not what was cut"
    little = slow.model_copy(update={"slower": ()})
    assert whole_cuts(view(little))[0].structure.widths["flat"] == 24, "faster, only not enough"
    compared = slow.model_copy(update={"slower": (), "compare_key": "compared"})
    assert whole_cuts(view(compared))[0].structure.widths["flat"] == 28


def test_groups_that_made_a_cut_of_the_whole_slower_are_left_out_of_the_next() -> None:
    first = whole_cuts(view())[0]
    screened = lost(first).model_copy(
        update={"fine_tune_key": None, "not_faster": True, "slower": ("fragile",)}
    )
    again = whole_cuts(view(screened))[0].structure.widths
    assert again["flat"] == first.structure.widths["flat"]
    assert again.get("fragile") != first.structure.widths["fragile"]


def test_the_halving_ends() -> None:
    decisions: list[Decision] = []
    while found := whole_cuts(view(*decisions)):
        decisions += [lost(candidate) for candidate in found]
        assert len(decisions) < 10
    assert len(decisions) > len(FIRST_SHARES)


def test_after_a_step_the_next_cut_lies_between_it_and_what_was_lost() -> None:
    """The lost one is now as much nearer as the step took."""
    first, weak = whole_cuts(view())
    taken = lost(weak).model_copy(update={"accepted": True})
    following, *_ = whole_cuts(view(lost(first), taken, structure=weak.structure))
    left = kept(first) / kept(weak)
    assert kept(following) / kept(weak) == pytest.approx(math.sqrt(left), abs=0.06)
    assert kept(first) < kept(following) < kept(weak)


def test_a_cut_that_held_in_the_end_was_not_lost() -> None:
    """It fell short at first, and was accepted once it had been trained further."""
    first, _ = whole_cuts(view())
    short = lost(first)
    held = short.model_copy(update={"accepted": True, "task_name": f"{NAME}, trained further"})
    following = view(short, held, structure=first.structure)
    at_first = view(held, structure=first.structure)
    assert [item.structure for item in whole_cuts(following)] == [
        item.structure for item in whole_cuts(at_first)
    ]
    assert not needs_recovery(following)


def test_after_a_long_training_the_last_lost_cut_is_tried_again() -> None:
    decisions: list[Decision] = []
    while found := whole_cuts(view(*decisions)):
        decisions += [lost(candidate) for candidate in found]
    last = whole_cuts(view(*decisions[:-1]))[0]
    after = view(*decisions, recovered_after=len(decisions))
    search = after.search.model_copy(update={"current": fake_world.network(accuracy=0.96)})
    assert whole_cuts(after) == [], "the same weights: the same candidates, which have been tried"
    (again,) = whole_cuts(replace(after, search=search))
    assert kept(again) <= kept(last)
    assert kept(again) > max(FIRST_SHARES)


def test_a_long_training_that_changed_nothing_does_not_end_the_cuts() -> None:
    decisions = [lost(candidate) for candidate in whole_cuts(view())]
    (shallower,) = whole_cuts(view(*decisions, recovered_after=len(decisions)))
    assert max(FIRST_SHARES) < kept(shallower) < 1.0, "what was tried already is not tried again"


def trained_to(candidate: Candidate, *accuracies: float) -> View:
    """A candidate that lost its accuracy, and was trained further, up to the last of these."""
    decisions, networks = [], {}
    for number, accuracy in enumerate(accuracies):
        network = fake_world.network(candidate.structure, accuracy)
        key = f"trained {number}"
        networks[key] = network
        decisions.append(
            lost(candidate).model_copy(
                update={
                    "fine_tune_key": key,
                    "val_accuracy": accuracy,
                    "candidate_id": f"{candidate.candidate_id}{number}",
                }
            )
        )
    return replace(view(*decisions), lost=networks)


@pytest.mark.parametrize(
    ("accuracies", "goes_on"),
    [
        ((0.897,), True),
        ((0.895,), False),  # lacks 0.005, more than a training is hoped to gain
        ((0.884, 0.892), True),  # gained 0.008, lacks as much
        ((0.89, 0.893), False),  # gained 0.003, lacks 0.007
        ((0.899, 0.899), False),  # gained nothing
        ((0.891, 0.8956, 0.8979), True),
        ((0.891, 0.8956, 0.8979, 0.8991), False),  # often enough
    ],
)
def test_a_cut_lost_narrowly_is_trained_further_as_long_as_that_promises_to_do(
    accuracies: tuple[float, ...], goes_on: bool
) -> None:
    cut = whole_cuts(view())[0]
    after = trained_to(cut, *accuracies)
    again = trained_further(after, 0.9)
    assert (again is not None) == goes_on
    if again is not None:
        assert again.structure == cut.structure and again.groups == cut.groups
        assert again.trained_from is not None and again.parent == after.search.current
        assert again.trained_from.val_accuracy == max(accuracies)
        assert again.trained_further == len(accuracies)
        assert again.candidate_id not in after.tried
        training = fine_tuning(again, fake_world.network(), fake_world.config())
        assert training.parent == again.trained_from
        whole = [item for item in Parallel().propose(after).candidates if not item.task_id]
        assert [item.candidate_id for item in whole] == [again.candidate_id]


def test_where_one_cut_promises_no_more_another_is_trained_further() -> None:
    deep, weak = whole_cuts(view())
    given_up, narrow = trained_to(deep, 0.899, 0.899), trained_to(weak, 0.897)
    (other,) = narrow.search.decisions
    other = other.model_copy(update={"fine_tune_key": "other"})
    search = fake_world.search(decisions=(*given_up.search.decisions, other))
    lost = {**given_up.lost, "other": narrow.lost["trained 0"]}
    again = trained_further(replace(given_up, search=search, lost=lost), 0.9)
    assert again is not None and again.structure == weak.structure
    assert again.trained_from == lost["other"]


def test_a_single_task_that_was_trained_for_long_is_trained_further_too() -> None:
    after = view(losses={}, per_round=1)
    alone = next(item for item in Parallel().propose(after).candidates if item.task_id)
    assert not alone.long_training and trained_further(trained_to(alone, 0.899), 0.9) is None
    again = trained_further(
        trained_to(alone.model_copy(update={"long_training": True}), 0.899), 0.9
    )
    assert again is not None and again.structure == alone.structure
    assert (again.task_id, again.task_name) == (
        alone.task_id,
        f"{alone.task_name}, trained further",
    )


def test_one_that_was_not_faster_after_all_is_not_proposed_again() -> None:
    after = trained_to(whole_cuts(view())[0], 0.897)
    again = trained_further(after, 0.9)
    assert again is not None
    for changes in ({"fine_tune_key": None}, {"compare_key": "compared"}):
        slow = lost(again).model_copy(update={**changes, "not_faster": True})
        decisions = (*after.search.decisions, slow)
        search = after.search.model_copy(update={"decisions": decisions})
        assert trained_further(replace(after, search=search), 0.9) is None


def test_what_was_lost_before_a_step_or_a_long_training_is_not_trained_further() -> None:
    first, weak = whole_cuts(view())
    after = trained_to(first, 0.897)
    taken = lost(weak).model_copy(update={"accepted": True})
    (narrow,) = after.search.decisions
    for search in (
        fake_world.search(decisions=(narrow, taken)),
        fake_world.search(decisions=(narrow,), recovered_after=1),
    ):
        assert search.lost_cuts == ()
        assert trained_further(replace(after, search=search), 0.9) is None


def test_single_tasks_are_cut_beside_the_whole_only_where_others_are_trained_too() -> None:
    def alone(view: View) -> list[Candidate]:
        return [item for item in Parallel().propose(view).candidates if item.task_id]

    assert alone(view(per_round=2)) and not alone(view(per_round=1))
    assert not any(item.long_training for item in alone(view(per_round=2)))
    lost_all: list[Decision] = []
    while found := whole_cuts(view(*lost_all)):
        lost_all += [lost(candidate) for candidate in found]
    left = alone(view(*lost_all, per_round=1))
    assert left and all(item.long_training for item in left)


def test_at_the_floor_single_tasks_are_trained_for_long_beside_one_trained_further() -> None:
    lost_all: list[Decision] = []
    while found := whole_cuts(view(*lost_all)):
        lost_all += [lost(candidate) for candidate in found]
    at_the_floor = view(*lost_all, per_round=2)
    first, *_ = Parallel().propose(at_the_floor).candidates
    assert first.task_id and first.long_training
    narrowly = trained_to(first, 0.897)
    search = at_the_floor.search.model_copy(
        update={"decisions": (*lost_all, *narrowly.search.decisions)}
    )
    lost_networks = {**at_the_floor.lost, **narrowly.lost}
    after = replace(at_the_floor, search=search, lost=lost_networks)
    again, *others = Parallel().propose(after).candidates
    assert again.trained_further == 1 and again.structure == first.structure
    assert others and all(item.task_id and item.long_training for item in others)


def test_at_the_floor_what_a_short_training_set_aside_is_trained_for_long() -> None:
    shortly, *_ = [item for item in Parallel().propose(view()).candidates if item.task_id]
    assert not shortly.long_training
    lost_all: list[Decision] = []
    while found := whole_cuts(view(*lost_all)):
        lost_all += [lost(candidate) for candidate in found]

    def proposed(decision: Decision, *beside: Decision) -> list[Candidate]:
        seen = view(*lost_all, decision, *beside)
        aside = seen.search.model_copy(update={"set_aside": (decision.task_id,)})
        found = Parallel().propose(replace(seen, search=aside)).candidates
        return [item for item in found if item.task_id == shortly.task_id]

    again = proposed(lost(shortly))
    assert shortly.structure in [item.structure for item in again]
    assert all(item.long_training for item in again)
    assert proposed(lost(shortly).model_copy(update={"long_training": True})) == []
    not_faster = {"candidate_id": "other", "fine_tune_key": None, "not_faster": True}
    refused = lost(shortly).model_copy(update=not_faster)
    assert proposed(refused) == []
    assert proposed(lost(shortly), refused), "another width of it was refused"


def test_at_the_floor_each_depth_of_a_task_is_tried_in_the_end() -> None:
    decided: list[Decision] = []
    while found := whole_cuts(view(*decided)):
        decided += [lost(candidate) for candidate in found]
    aside: dict[str, None] = {}
    seen: dict[str, set[int]] = {}

    def proposed() -> list[Candidate]:
        now = view(*decided)
        search = now.search.model_copy(update={"set_aside": tuple(aside)})
        return list(Parallel().propose(replace(now, search=search)).candidates)

    while found := proposed():
        decided += [lost(candidate) for candidate in found]
        aside |= dict.fromkeys(candidate.task_id for candidate in found)
        for candidate in found:
            seen.setdefault(candidate.task_name, set()).update(candidate.widths_after)
    assert max(map(len, seen.values())) > view().config.widths_per_task


@pytest.mark.parametrize(("accuracy", "deep"), [(0.91, True), (0.901, False)])
def test_after_a_long_training_a_cut_is_as_deep_as_the_lost_one_if_that_gained_something(
    accuracy: float, deep: bool
) -> None:
    """The floor is 0.9."""
    first = whole_cuts(view())[0]
    seen = view(lost(first), recovered_after=1)
    current = seen.search.current.model_copy(update={"val_accuracy": accuracy, "weights": "new"})
    search = seen.search.model_copy(update={"current": current})
    found, *_ = whole_cuts(replace(seen, search=search))
    assert kept(found) == pytest.approx(kept(first) ** (1.0 if deep else 0.5), abs=0.06)


def test_the_network_recovers_where_cuts_were_taken_and_deeper_ones_lost() -> None:
    failed: list[Decision] = []
    while found := whole_cuts(view(*failed)):
        failed += [lost(candidate) for candidate in found]
    taken = failed[-1].model_copy(update={"accepted": True})
    assert not needs_recovery(view(*failed)), "nothing was taken: there is nothing to regain"
    assert not needs_recovery(view(taken)), "nothing was lost"
    assert needs_recovery(view(*failed, taken))
    assert Parallel().propose(view(*failed, taken)).recovery
    after = view(*failed, taken, recovered_after=len(failed) + 1)
    assert not needs_recovery(after) and not Parallel().propose(after).recovery


def test_none_is_nowhere_wider_than_one_that_missed_the_floor_by_far() -> None:
    first = whole_cuts(view())[0]
    least = view().search.floor
    far, near = (
        lost(first).model_copy(update={"val_accuracy": least - missed}) for missed in (0.02, 0.005)
    )
    assert view(near).missed == [] and view(far).missed == [first.structure]
    seen = view(far, recovered_after=1)
    found = [*whole_cuts(seen), *Parallel().alone(seen, seen.config, at_the_floor=True).candidates]
    assert len(found) > 2
    assert not any(is_within(item.structure.widths, [first.structure]) for item in found)


def test_what_the_current_network_disproves_is_not_held_against_others() -> None:
    first = whole_cuts(view())[0]
    before = lost(first).model_copy(update={"val_accuracy": 0.0})
    assert view(before).missed == [first.structure]
    assert view(before, structure=first.structure).missed == []


def test_a_cut_of_the_whole_network_that_a_task_would_get_too_is_proposed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twice = whole_cuts(view())[0]
    alone = twice.model_copy(update={"task_id": "task", "long_training": False})
    found = Proposal(candidates=(alone,))
    monkeypatch.setattr(Parallel, "alone", lambda *arguments, **options: found)
    monkeypatch.setattr("orchestrator.policies.parallel.whole_cuts", lambda seen: [twice])
    (proposed,) = Parallel().propose(view(per_round=2)).candidates
    assert proposed.candidate_id == twice.candidate_id
    assert proposed.long_training and not proposed.task_id
