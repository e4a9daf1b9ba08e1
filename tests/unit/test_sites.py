"""The calls of a network, and what they would cost with other widths."""

from __future__ import annotations

import fake_world
import pytest

from orchestrator.policies.call_costs import CallCosts
from orchestrator.policies.latency_model import LatencyModel, predicted_ms, samples_of
from orchestrator.policies.sites import Sites
from schemas.network import Block, ChannelGroup, Structure

DEEP = Block(block_id="block", groups=("deep",), layers=("deep", "head"))


def test_without_a_block_its_calls_cost_nothing() -> None:
    tuned = fake_world.tuned(Structure(), "host")
    sites = Sites(tuned, fake_world.groups(), dict(fake_world.LAYERS), CallCosts({}), [DEEP])
    left = sum(
        tuned.latency(site.task_id).cost_ms
        for site in tuned.table.subgraphs
        if site.module not in DEEP.layers
    )
    assert sites.total_ms({"deep": 0.0}) == pytest.approx(left)
    model = LatencyModel(samples_of([tuned]))
    told = predicted_ms(model, tuned, fake_world.groups(), fake_world.LAYERS, {"deep": 0}, [DEEP])
    assert told == pytest.approx(left)


PLAIN = Block(block_id="flat", groups=("flat",), layers=("flat",), source="fragile")
"""The fake world's layers are a chain: fragile, flat, deep."""


def test_without_a_plain_layer_its_reader_reads_what_it_read() -> None:
    tuned, widths = fake_world.tuned(Structure(), "host"), dict(fake_world.LAYERS)
    sites = Sites(tuned, fake_world.groups(), widths, CallCosts({}), [PLAIN])
    cost = {site.module: tuned.latency(site.task_id).cost_ms for site in tuned.table.subgraphs}
    (stem, fragile, deep, head) = (cost[name] for name in ("stem", "fragile", "deep", "head"))
    read = widths["fragile"] / widths["flat"]
    gone = {"flat": 0.0}
    assert sites.total_ms(gone) == pytest.approx(stem + fragile + read * deep + head)
    narrow = {"flat": 0.0, "fragile": 0.5}
    expected = stem + 0.5 * fragile + 0.5 * read * deep + head
    assert sites.total_ms(narrow) == pytest.approx(expected)
    saved = sites.of_ms(["fragile"], gone) - sites.of_ms(["fragile"], narrow)
    assert saved == pytest.approx(0.5 * fragile + 0.5 * read * deep)
    model = LatencyModel(samples_of([tuned]))
    cut = {"flat": 0, "fragile": 16}
    told = predicted_ms(model, tuned, fake_world.groups(), widths, cut, [PLAIN])
    assert told == pytest.approx(expected, rel=0.05)


def test_a_depthwise_call_goes_with_its_width_once() -> None:
    tuned = fake_world.tuned(Structure(), "host")
    tasks = tuple(task.model_copy(update={"kind": "depthwise"}) for task in tuned.table.tasks)
    groups = [
        group.model_copy(update={"producers": ("deep", "head"), "consumers": ("head",)})
        for group in fake_world.groups()
        if group.group_id == "deep"
    ]
    for kinds, power in ((tuned.table.tasks, 2), (tasks, 1)):
        table = tuned.table.model_copy(update={"tasks": kinds})
        sites = Sites(tuned.model_copy(update={"table": table}), groups, {}, CallCosts({}))
        before = {s.module: s.task_id for s in table.subgraphs}
        costs = [tuned.latency(before[name]).cost_ms for name in ("deep", "head")]
        expected = 0.5 * costs[0] + 0.5**power * costs[1]
        assert sites.of_ms(["deep"], {"deep": 0.5}) == pytest.approx(expected)


def test_a_call_behind_a_concatenation_keeps_what_its_groups_keep_together() -> None:
    tuned = fake_world.tuned(Structure(), "host")
    wide, narrow = (
        ChannelGroup(group_id=name, channels=channels, producers=(name,), consumers=("head",))
        for name, channels in (("deep", 24), ("flat", 8))
    )
    sites = Sites(tuned, [wide, narrow], {"deep": 24, "flat": 8}, CallCosts({}))
    tasks = {s.module: s.task_id for s in tuned.table.subgraphs}
    head = tuned.latency(tasks["head"]).cost_ms
    alone = tuned.latency(tasks["deep"]).cost_ms
    assert sites.of_ms(["deep"], {"deep": 0.5}) == pytest.approx(0.5 * alone + 20 / 32 * head)
    both = {"deep": 0.5, "flat": 0.5}
    assert sites.of_ms(["deep"], both) == pytest.approx(0.5 * alone + 0.5 * head)
