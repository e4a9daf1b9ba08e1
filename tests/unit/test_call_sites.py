"""Call sites of a pruned network and those of its parent, which may have more of them."""

from __future__ import annotations

from schemas.table import NetworkTable, Subgraph
from workers.tuning.call_sites import counterparts

PARENT = ["stem", None, "a.first", None, "a.second", "b.first", "b.second", None, "head", None]


def table(modules: list[str | None], widths: str) -> NetworkTable:
    return NetworkTable(
        tasks=(),
        subgraphs=tuple(
            Subgraph(
                index=index,
                task_id=f"{widths} {index}",
                module=module,
                parameter=None,
                output_shape=(1,),
            )
            for index, module in enumerate(modules)
        ),
    )


def origins(own: list[str | None]) -> list[int] | None:
    """The parent's site of each site."""
    pairs = counterparts(table(own, "narrow"), table(PARENT, "wide"))
    return None if pairs is None else [before.index for _, before in pairs]


def test_sites_of_as_many_layers_go_together_in_order() -> None:
    assert origins(PARENT) == list(range(len(PARENT)))


def test_those_of_a_block_that_is_gone_go_with_none_nor_do_those_between_its_layers() -> None:
    without_a = ["stem", None, "b.first", "b.second", None, "head", None]
    assert origins(without_a) == [0, 1, 5, 6, 7, 8, 9]
    without_b = ["stem", None, "a.first", None, "a.second", None, "head", None]
    assert origins(without_b) == [0, 1, 2, 3, 4, 7, 8, 9]


def test_networks_whose_sites_do_not_go_together_are_told_apart() -> None:
    assert origins(["stem", "b.first", "b.second", None, "head", None]) is None
    assert origins([*PARENT, "more"]) is None
    assert origins(["stem", None, "b.second", "b.first", None, "head", None]) is None
