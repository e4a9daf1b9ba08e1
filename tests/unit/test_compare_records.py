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


def test_when_ours_goes_on_the_others_get_its_records_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.go(METHODS)
    world.go((*METHODS, "fpgm"))
    assert known(world, RECORDS_OF_OTHERS) == [0, 1, 2, 3, 4], "ours was done"
    ended = driver.has_ended
    monkeypatch.setattr(
        comparison.driver,
        "has_ended",
        lambda config, *others: config.run != OURS and ended(config, *others),
    )
    world.go(METHODS)
    assert known(world, RECORDS) == [0, 1, 5]
    assert known(world, RECORDS_OF_OTHERS) == [0, 1, 5]


def test_without_ours_records_the_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "RECORDS", "not there")
    assert [row.method for row in world.go(METHODS).rows] == ["dense", *METHODS]
    assert known(world, RECORDS_OF_OTHERS) == [2, 3]
