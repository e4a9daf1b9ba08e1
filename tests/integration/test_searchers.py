"""Rounds of search in processes of their own find what the search finds in this one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_device_support import tree, wait_until

from schemas.table import Measurement, Program
from workers.compiling.network import relax_network
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import build_table
from workers.compiling.workload import Workload
from workers.errors import LimitReached
from workers.pruning.fold import exported_program
from workers.tuning.cost_model import RecordModel, booster_of, extracted, packed
from workers.tuning.search import Search, target_of
from workers.tuning.search_jobs import FeaturesJob, FoundProgram, SearchJob
from workers.tuning.searchers import Searchers

TARGET = {"kind": "llvm", "num-cores": 2}
COUNT, POPULATION, SEED = 6, 16, 7
Open = Callable[[int], Searchers]


class Layers(torch.nn.Module):
    """Two convolutions and what is behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 32, 3, padding=1, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(image))))


@pytest.fixture(scope="module")
def space() -> ScheduleSpace:
    return ScheduleSpace(target_of(TARGET))


@pytest.fixture(scope="module")
def workloads(space: ScheduleSpace) -> list[Workload]:
    network = Layers().eval().requires_grad_(False)
    relax = relax_network(exported_program(network, torch.zeros(1, 3, 16, 16)), space.target)
    found = build_table(relax, space.target).workloads.values()
    return [workload for workload in found if workload.task.kind == "conv2d"]


@pytest.fixture
def open_searchers(tmp_path: Path) -> Iterator[Open]:
    opened: list[Searchers] = []

    def open_it(parallel: int) -> Searchers:
        opened.append(Searchers(TARGET, parallel, None, tmp_path / "locks", tmp_path))
        return opened[-1]

    yield open_it
    for searchers in opened:
        searchers.close()


def job(workload: Workload, *known: Program, population: int = POPULATION) -> SearchJob:
    return SearchJob(
        task=workload.task,
        module=workload.text,
        axes=workload.axes,
        known=known,
        population_size=population,
        generations=1,
        count=COUNT,
        seed=SEED,
        examples=(),
    )


def measured(workload: Workload, found: list[FoundProgram]) -> list[Program]:
    """The programs with latencies, as a device might have answered."""
    return [
        Program(
            program_id=program.program_id,
            task_id=workload.task.task_id,
            device_model="m",
            trace=program.trace,
            source="search",
            measurement=Measurement(
                run_ms=(1.0 + position,),
                device="d",
                device_kind="local",
                threads=2,
                measured_at=0.0,
            ),
        )
        for position, program in enumerate(found)
    ]


def names(found: list[list[FoundProgram]]) -> list[list[str]]:
    return [[program.program_id for program in programs] for programs in found]


def test_they_find_what_a_search_in_this_process_finds(
    open_searchers: Open, space: ScheduleSpace, workloads: list[Workload]
) -> None:
    """Guessing at first; then with a trained model and the programs that were measured."""
    searchers, search = open_searchers(2), Search(space, POPULATION, 1)
    model, booster = RecordModel(), b""
    known: dict[str, list[Program]] = {w.task.task_id: [] for w in workloads}
    for turn in range(3):
        records = {
            task: {p.program_id: p.latency_ms for p in programs} for task, programs in known.items()
        }
        fitted = model.fitted(records, SEED)
        booster = booster_of(fitted)
        jobs = [job(workload, *known[workload.task.task_id]) for workload in workloads]
        found = searchers.propose(jobs, booster)
        for workload, programs in zip(workloads, found, strict=True):
            task_id = workload.task.task_id
            here = search.propose(workload, known[task_id], COUNT, SEED, fitted)
            assert len(programs) == COUNT or turn
            assert [p.program_id for p in here] == [p.program_id for p in programs]
            assert [p.trace for p in here] == [p.trace for p in programs]
            context = search.context(task_id, workload.module, 1)
            rows = extracted(context, [proposal.schedule for proposal in here])
            assert [packed(one) for one in rows] == [p.features for p in programs]
            for program in programs:
                model.keep(program.program_id, program.features)
            known[task_id] += measured(workload, programs)
    assert booster, "the last round had a model that was trained"


def test_how_many_search_at_a_time_does_not_matter(
    open_searchers: Open, workloads: list[Workload]
) -> None:
    jobs = [job(workload) for workload in workloads]
    alone = names(open_searchers(1).propose(jobs, b""))
    assert alone == names(open_searchers(3).propose(jobs, b"")) and alone[0] != alone[1]


def test_what_is_known_is_not_found_again_and_has_the_same_features(
    open_searchers: Open, workloads: list[Workload]
) -> None:
    searchers, workload = open_searchers(2), workloads[1]
    (first,) = searchers.propose([job(workload)], b"")
    (second,) = searchers.propose([job(workload, *measured(workload, first))], b"")
    assert second and not set(names([first])[0]) & set(names([second])[0])
    found = [*first, *second] * 2  # more than one part
    traces = tuple(program.trace for program in found)
    task_id = workload.task.task_id
    asked = FeaturesJob(task_id=task_id, module=workload.text, traces=traces)
    features, none = searchers.features([asked, asked.model_copy(update={"traces": ()})])
    assert features == [program.features for program in found] and none == []


def test_a_killed_process_costs_its_time_alone(
    open_searchers: Open, workloads: list[Workload]
) -> None:
    jobs = [job(workload, population=64) for workload in workloads]
    searchers = open_searchers(2)
    expected = names(searchers.propose(jobs, b""))
    pid = searchers.pid
    assert pid is not None

    def kill() -> None:
        assert wait_until(lambda: len(tree(pid)) > 1)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = names(searchers.propose(jobs, b""))
    killer.join()
    assert found == expected and searchers.pid not in (None, pid)


@pytest.mark.parametrize(
    ("results", "error"),
    [
        ([{"error": "crashed with SIGSEGV"}], RuntimeError),
        ([{"error": "killed", "unfinished": True}] * 2, LimitReached),
    ],
)
def test_what_a_search_died_of_is_told(
    open_searchers: Open,
    workloads: list[Workload],
    monkeypatch: pytest.MonkeyPatch,
    results: list[dict[str, Any]],
    error: type[Exception],
) -> None:
    searchers, left = open_searchers(1), list(results)
    monkeypatch.setattr(
        searchers._process, "call_again", lambda *_, **__: {"results": [left.pop(0)]}
    )
    with pytest.raises(error, match=results[0]["error"]):
        searchers.propose([job(workloads[0])], b"")
    assert left == []


def test_a_process_that_is_killed_again_and_again_is_no_fault_of_the_network(
    open_searchers: Open, workloads: list[Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    searchers = open_searchers(1)
    process: Any = searchers._process
    exchange = process._exchange

    def killed(request: Any, *values: Any) -> Any:
        if request is not None:  # it has been started, and is asked now
            os.kill(process.pid, signal.SIGKILL)
        return exchange(request, *values)

    monkeypatch.setattr(process, "_exchange", killed)
    with pytest.raises(LimitReached, match=r"SIGKILL.*short of memory"):
        searchers.propose([job(workloads[0])], b"")


def test_one_that_the_machine_ended_is_carried_out_once_more(
    open_searchers: Open, workloads: list[Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    searchers = open_searchers(1)
    call, asked = searchers._process.call_again, []

    def lose_the_first(method: str, request: Any, **more: Any) -> Any:
        asked.append(len(request["items"]))
        answer = call(method, request, **more)
        if len(asked) == 1:
            answer["results"][0] = {"error": "killed with SIGKILL", "unfinished": True}
        return answer

    jobs = [job(workload) for workload in workloads]
    expected = names(searchers.propose(jobs, b""))
    monkeypatch.setattr(searchers._process, "call_again", lose_the_first)
    assert names(searchers.propose(jobs, b"")) == expected and asked == [2, 1]


def test_the_process_is_without_torch(open_searchers: Open, workloads: list[Workload]) -> None:
    searchers = open_searchers(1)
    searchers.propose([job(workloads[0])], b"")
    libraries = Path(f"/proc/{searchers.pid}/maps").read_text()
    assert "libxgboost" in libraries and "libtorch" not in libraries


@pytest.mark.parametrize(("parallel", "rounds"), [(1, 2), (2, 2), (11, 2), (12, 3), (99, 8)])
def test_rounds_at_once_follow_from_the_cores(
    open_searchers: Open, parallel: int, rounds: int
) -> None:
    assert open_searchers(parallel).usual_rounds == rounds
