"""Whose records of measured programs the rows of a comparison begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare_world import World
from records_world import numbers, program, store

from orchestrator import driver
from orchestrator.compare import comparison
from orchestrator.compare.methods import OURS, RECORDS, RECORDS_OF_OTHERS, START

METHODS = (OURS, "uniform-l1")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Runs that each add a program to their records: number 0 the first one, and so on."""
    world = World(monkeypatch, tmp_path)
    run, ran = comparison.driver.run, []

    def measured(config: driver.RunConfig, folder: Path, **others: object) -> object:
        opened = store(Path(str(config.records.path)))
        opened.keep([program(len(ran))])
        opened.close()
        ran.append(folder.name)
        return run(config, folder, **others)

    monkeypatch.setattr(comparison.driver, "run", measured)
    return world


def known(world: World, name: str) -> list[int]:
    opened = store(world.folder / name)
    found = numbers(opened.take(["task"], "m"))
    opened.close()
    return found


def test_the_others_begin_with_ours_records_and_ours_has_none_of_theirs(world: World) -> None:
    world.go(METHODS)
    ran = [START, OURS, "dense", "uniform-l1"]
    assert [ran[number] for number in known(world, RECORDS)] == [START, OURS]
    assert [ran[number] for number in known(world, RECORDS_OF_OTHERS)] == ran


def test_when_ours_goes_on_the_others_get_its_records_again(world: World) -> None:
    shorter = {"budget": {"max_rounds": 1}}
    world.go(METHODS, **shorter)
    world.go((*METHODS, "fpgm"), **shorter)
    assert known(world, RECORDS_OF_OTHERS) == [0, 1, 2, 3, 4], "ours was done"
    world.go((OURS,), budget={"max_rounds": 30})
    assert known(world, RECORDS) == [0, 1, 5]
    assert known(world, RECORDS_OF_OTHERS) == [0, 1, 5]


def test_so_they_do_where_a_comparison_died_between(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.go(METHODS, budget={"max_rounds": 1})
    give = comparison._give_what_ours_has
    monkeypatch.setattr(comparison, "_give_what_ours_has", lambda *_: None)
    world.go((OURS,), budget={"max_rounds": 30})
    assert known(world, RECORDS_OF_OTHERS) == [0, 1, 2, 3]
    monkeypatch.setattr(comparison, "_give_what_ours_has", give)
    world.go((OURS,), budget={"max_rounds": 30})
    assert known(world, RECORDS_OF_OTHERS) == [0, 1, 4]


def test_an_ablation_begins_as_ours_did(world: World) -> None:
    """It is to do without some of what ours measured."""
    world.go((OURS, "without blocks", "without transplants"))
    assert known(world, RECORDS) == [0, 1]
    assert known(world, "records-without-blocks.sqlite") == [0, 3]
    assert known(world, "records-without-transplants.sqlite") == [0, 4]


def test_without_ours_records_the_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "RECORDS", "not there")
    assert [row.method for row in world.go(METHODS).rows] == ["dense", *METHODS]
    assert known(world, RECORDS_OF_OTHERS) == [2, 3]
