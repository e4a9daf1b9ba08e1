"""Trials a network still has to come, when some of its programs are known."""

from __future__ import annotations

from records_world import program

from schemas.table import SHARED_BATCH, NetworkTable, Program, Subgraph, Task
from schemas.work import TuneWork
from workers.tuning.budget import Budget

TABLE = NetworkTable(
    tasks=tuple(
        Task(task_id=name, name=name, kind=kind, workload="", macs=1)
        for name, kind in (("slow", "conv2d"), ("quick", "conv2d"), ("small", "other"))
    ),
    subgraphs=tuple(
        Subgraph(index=index, task_id=name, module=name, parameter=None, output_shape=(1,))
        for index, name in enumerate(("slow", "quick", "small"))
    ),
)


def own(count: int) -> list[Program]:
    return [program(number) for number in range(count)]


def shared(count: int, source: str = "search") -> list[Program]:
    return [program(number, batch=SHARED_BATCH, source=source) for number in range(count)]


def budget(
    slow: list[Program], quick: list[Program], small: list[Program], **changes: object
) -> Budget:
    values = {"target": "host", "network": None, "trials_per_task": 32, **changes}
    work = TuneWork.model_validate(values)
    return Budget(work, TABLE, {"slow": slow, "quick": quick, "small": small}, 16)


def owed(budget: Budget) -> list[int]:
    return [progress.owed for progress in budget.progress()]


def test_known_programs_are_trials_had() -> None:
    new = budget([], [], [])
    assert (owed(new), new.total()) == ([16, 16, 4], 68)
    begun = budget(own(10), shared(20), [])
    assert (owed(begun), begun.total()) == ([6, 0, 4], 22 + 12 + 4)


def test_transplants_are_no_trials_of_a_search() -> None:
    moved = [program(number, source="transplant") for number in range(6)]
    begun = budget([*moved, *own(4)], moved, [])
    assert (owed(begun), begun.total()) == ([12, 16, 4], 28 + 32 + 4)


def test_what_one_task_had_beyond_its_share_is_no_loss_of_a_new_one() -> None:
    assert budget(own(60), own(4), own(4)).total() == 28
    assert budget(shared(60), [], shared(4)).total() == 32


def test_a_network_that_others_have_tuned_as_a_whole_has_had_its_trials() -> None:
    tuned = budget(shared(48), shared(16), shared(4))
    assert (owed(tuned), tuned.total()) == ([0, 0, 0], 0)
    half = budget(shared(24), shared(16), shared(4))
    assert (owed(half), half.total()) == ([0, 0, 0], 24)
    part = budget(shared(48), shared(16), [], modules=("slow", "quick"))
    assert (owed(part), part.total()) == ([0, 0, 0], 0)


def test_trials_are_added_to_those_of_this_run() -> None:
    again = {"added_trials": True, "trials_per_task": 8, "modules": ("slow", "quick")}
    assert owed(budget(own(40), shared(4, "transplant"), [], **again)) == [8, 8, 0]
    taken = budget([*own(40), *shared(6)], [*shared(4, "transplant"), *shared(30)], [], **again)
    assert owed(taken) == [2, 0, 0]


def test_what_other_runs_searched_is_searched_again_where_it_does_not_count() -> None:
    again = {"added_trials": True, "trials_per_task": 8, "counts_shared": False}
    redone = budget([*own(9), *shared(60)], shared(60), [], **again)
    assert (owed(redone), redone.total()) == ([8, 8, 4], 20)


def test_a_task_without_weights_is_searched_where_it_is_named() -> None:
    named = budget([], [], [], tasks=("small",))
    assert (owed(named), named.total()) == ([0, 0, 4], 4)
    assert owed(budget([], [], [], modules=("slow",), tasks=("small",))) == [0, 0, 0]
