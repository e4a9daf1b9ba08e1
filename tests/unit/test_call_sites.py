"""Call sites of a pruned network and those of its parent, which may have more of them."""

from __future__ import annotations

from schemas.table import NetworkTable, Subgraph, Task
from workers.tuning.call_sites import counterparts

PARENT = ["stem", "/pool", "/norm1", "a.first", "/norm2", "a.second", "/norm3", "b.first", "/pool1"]
"""Layers, and after a slash the tasks of sites without one."""


def table(names: list[str], widths: str) -> NetworkTable:
    tasks = [
        Task(task_id=f"{widths} {name}", name=name.strip("/"), kind="other", workload="", macs=0)
        for name in names
    ]
    return NetworkTable(
        tasks=tuple(tasks),
        subgraphs=tuple(
            Subgraph(
                index=index,
                task_id=tasks[index].task_id,
                module=None if name.startswith("/") else name,
                parameter=None,
                output_shape=(1,),
            )
            for index, name in enumerate(names)
        ),
    )


def origins(own: list[str]) -> list[int] | None:
    """The parent's site of each site."""
    pairs = counterparts(table(own, "narrow"), table(PARENT, "wide"))
    if pairs is None:
        return None
    assert [site.index for site, _ in pairs] == list(range(len(own)))
    return [before.index for _, before in pairs]


def test_sites_of_as_many_layers_go_together_in_order() -> None:
    assert origins(PARENT) == list(range(len(PARENT)))
    renumbered = [name.replace("norm", "norm1") for name in PARENT]
    assert origins(renumbered) == list(range(len(PARENT)))


def test_where_a_block_is_gone_sites_go_with_those_that_are_called_alike() -> None:
    without_a = ["stem", "/pool", "/norm1", "b.first", "/pool1"]
    assert origins(without_a) == [0, 1, 6, 7, 8]
    without_b = ["stem", "/pool", "/norm1", "a.first", "/norm2", "a.second", "/pool1"]
    assert origins(without_b) == [0, 1, 2, 3, 4, 5, 8]


def test_networks_whose_sites_do_not_go_together_are_told_apart() -> None:
    assert origins([*PARENT, "more"]) is None
    assert origins(["stem", "/pool", "/pool", "b.first", "/pool1"]) is None
    assert origins(["stem", "/pool", "/norm1", "b.first", "a.first", "/pool1"]) is None
