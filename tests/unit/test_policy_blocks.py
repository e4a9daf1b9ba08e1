"""Residual blocks among the cuts of the whole network."""

from __future__ import annotations

import math
from dataclasses import replace

from fake_views import lost, view

from orchestrator.policies.whole import whole_cuts
from schemas.network import Block, Structure

DEEP = Block(block_id="block", groups=("deep",), layers=("deep", "head"))
"""Whoever takes it out loses the calls of ``deep`` and ``head``."""


def test_a_block_goes_where_its_latency_is_worth_more_than_its_loss() -> None:
    cheap = {"stem": 1.0, "fragile": 1.0, "flat": 1.0, "deep": 1e-9}
    for losses, blocks, gone in (
        (cheap, (DEEP,), {"deep"}),
        (cheap, (), set()),
        ({**cheap, "deep": 1e3}, (DEEP,), set()),
    ):
        found = whole_cuts(view(losses=losses, blocks=blocks))
        assert found and all(item.structure.gone == gone for item in found)


def test_of_several_blocks_half_go_at_once() -> None:
    blocks = tuple(
        Block(block_id=f"block {name}", groups=(name,), layers=(name,))
        for name in ("stem", "fragile", "deep")
    )
    losses = {"stem": 1e-9, "fragile": 1e-9, "flat": 1e3, "deep": 1e-9}
    found = whole_cuts(view(losses=losses, blocks=blocks))
    assert found and max(len(item.structure.gone) for item in found) == 1


def test_a_block_that_went_in_a_lost_cut_stays_in_the_weaker_ones() -> None:
    losses = {"stem": 1.0, "fragile": 1.0, "flat": 1.0, "deep": 1e-9}
    first = whole_cuts(view(losses=losses, blocks=(DEEP,)))[0]
    assert first.structure.gone == {"deep"}
    weaker = whole_cuts(view(lost(first), losses=losses, blocks=(DEEP,)))
    assert weaker and not any(item.structure.gone for item in weaker)
    anew = whole_cuts(view(lost(first), losses=losses, blocks=(DEEP,), recovered_after=1))
    assert anew[0].structure.gone == {"deep"}, "the network has been trained for long since"


def test_a_block_that_is_gone_is_not_cut_again() -> None:
    structure = Structure(widths={"deep": 0})
    seen = view(
        structure=structure,
        losses={"stem": 1.0, "fragile": 1.0, "flat": 1.0},
        blocks=(DEEP.model_copy(update={"layers": ("deep",)}),),
    )
    found = whole_cuts(seen)
    assert found and all("deep" not in item.groups for item in found)
    assert all(item.structure.widths["deep"] == 0 for item in found)
    assert [group.group_id for group in seen.groups] == ["stem", "fragile", "flat"]


def test_a_block_that_was_no_faster_without_it_stays_and_so_it_does_in_an_ablation() -> None:
    losses = {"stem": 1.0, "fragile": 1.0, "flat": 1.0, "deep": 1e-9}
    seen = view(losses=losses, blocks=(DEEP,))
    first = whole_cuts(seen)[0]
    refused = lost(first).model_copy(
        update={
            "task_id": "task",
            "task_name": "task",
            "groups": ("deep",),
            "structure": Structure(widths={"deep": 0}),
            "fine_tune_key": None,
            "not_faster": True,
            "slower": ("deep",),
        }
    )
    config = seen.config.model_copy(update={"without": ["blocks"]})
    for others in (view(refused, losses=losses, blocks=(DEEP,)), replace(seen, config=config)):
        found = whole_cuts(others)
        assert found and not any(item.structure.gone for item in found)


def test_how_deep_a_lost_cut_was_is_remembered_when_its_block_has_gone_since() -> None:
    losses = {"stem": 1.0, "fragile": 1.0, "flat": 1.0, "deep": 1e-9}
    first = whole_cuts(view(losses=losses, blocks=(DEEP,)))[-1]
    assert first.structure.gone and first.kept_share is not None
    found = whole_cuts(
        view(lost(first), structure=Structure(widths={"deep": 0}), losses=losses, blocks=(DEEP,))
    )
    expected = math.sqrt(first.kept_share)
    assert [expected - 0.1 < (item.kept_share or 0.0) <= expected for item in found] == [True]
