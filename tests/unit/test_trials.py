"""What becomes of devices' answers: stored at once, given back in the order of the trials."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tvm import IRModule, te
from tvm.s_tir import Schedule

from device_agents.local import DeviceLost
from orchestrator.store.memory import MemoryLedger
from schemas.config import TuneConfig
from schemas.table import Measurement, Program
from workers.compiling.builder import BuildJob, Library
from workers.measuring.gauge import Answers, ProgramFailed, Question
from workers.measuring.stretches import one_by_one
from workers.tuning.stored import as_proposed
from workers.tuning.trials import Alongside, Trial, Trials, trial_of

WORKLOAD: Any = SimpleNamespace(
    task=SimpleNamespace(task_id="task"),
    axes=SimpleNamespace(block=None, output=None, reduction=None),
)


class Gauge:
    """Answers a batch in another order; ``devices`` answer single questions one after the other."""

    device_model = "model"

    def __init__(self, order: Sequence[int] = (), devices: Sequence[str] = ()) -> None:
        self.order, self.devices = order, list(devices)
        self.asked: list[str] = []

    def measure(self, key: str, library: Library) -> Measurement:
        self.asked.append(key)
        device = self.devices.pop(0)
        if device == "fails":
            raise ProgramFailed("it crashed")
        return measurement(float(len(self.asked)), device)

    def measure_all(self, questions: Sequence[Question]) -> Answers:
        if self.devices:
            yield from one_by_one(self.measure, questions)
        for index in self.order:
            if index >= len(questions):
                raise DeviceLost("none is left")
            yield index, measurement(1.0 + index, f"device-{index}")

    def not_asked(self, key: str, reason: str) -> None:
        self.asked.append(f"not {key}")

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()


def measurement(latency_ms: float, device: str) -> Measurement:
    return Measurement(
        run_ms=(latency_ms,), device=device, device_kind="tracker", threads=1, measured_at=0.0
    )


def trial(name: str, position: int) -> Trial:
    return Trial(WORKLOAD, "batch", name, "[[],[]]", "", "search", position=position)


def trial_of_a_module() -> Trial:
    data = te.placeholder((1,), name="data")
    copied = te.compute((1,), lambda i: data[i], name="copied")
    schedule = Schedule(IRModule({"main": te.create_prim_func([data, copied])}))
    return trial_of(WORKLOAD, "batch", schedule, "search")


def measure(
    gauge: Gauge,
    table: MemoryLedger,
    names: str,
    folder: Path,
    beside: Library | None = None,
) -> list[Program]:
    """Measure a program for each letter; a capital letter is one that did not build."""
    trials = Trials(None, gauge, None, table, TuneConfig(), folder)  # type: ignore[arg-type]
    libraries = [
        Library(folder / f"{name}.so", error="no room" if name.isupper() else "") for name in names
    ]
    for library in libraries:
        library.path.touch()
    asked = [trial(name, position) for position, name in enumerate(names)]
    return trials.measure_beside([Alongside(beside, asked, libraries)])


@pytest.fixture
def table() -> MemoryLedger:
    return MemoryLedger()


def stored(table: MemoryLedger) -> list[Program]:
    return table.programs(["task"], "model")


def names_of(programs: Sequence[Program]) -> str:
    return "".join(program.program_id for program in programs)


def test_what_was_not_built_for_want_of_something_is_built_once_more(
    table: MemoryLedger, tmp_path: Path
) -> None:
    class Short:
        """Its machine is short of memory for all but the first job, the first time."""

        def __init__(self) -> None:
            self.asked: list[int] = []

        def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
            self.asked.append(len(jobs))
            if len(self.asked) > 1:
                return [Library(job.path) for job in jobs]
            late = Library(jobs[0].path, error="took too long", unfinished="time")
            short = [Library(job.path, error="killed", unfinished="machine") for job in jobs[1:]]
            return [late, *short]

    builder: Any = Short()
    trials = Trials(builder, Gauge(), None, table, TuneConfig(), tmp_path)  # type: ignore[arg-type]
    libraries = trials.build([trial(name, 0) for name in "abc"]).result()
    assert builder.asked == [3, 2]
    assert [library.error for library in libraries] == ["took too long", "", ""]


def test_programs_come_back_as_proposed_whoever_answers_first(
    table: MemoryLedger, tmp_path: Path
) -> None:
    found = measure(Gauge(order=[2, 0, 1]), table, "aBcd", tmp_path)
    assert names_of(found) == "aBcd"
    assert names_of(stored(table)) == "Bdac"
    assert names_of(as_proposed(stored(table))) == "aBcd"
    assert [program.position for program in found] == [0, 1, 2, 3]
    assert [program.error for program in found] == ["", "no room", "", ""]
    assert not list(tmp_path.glob("*.so"))


def test_one_batch_may_be_of_several_tasks_and_rounds(table: MemoryLedger, tmp_path: Path) -> None:
    other: Any = SimpleNamespace(
        task=SimpleNamespace(task_id="other"), axes=SimpleNamespace(**vars(WORKLOAD.axes))
    )
    asked = [
        trial("a", 0),
        replace(trial("b", 0), workload=other, batch="next"),
        trial("c", 1),
    ]
    libraries = [Library(tmp_path / f"{each.program_id}.so") for each in asked]
    gauge: Any = Gauge(order=[2, 1, 0])
    trials = Trials(None, gauge, None, table, TuneConfig(), tmp_path)  # type: ignore[arg-type]
    found = trials.measure(asked, libraries)
    told = [(program.program_id, program.task_id, program.batch) for program in found]
    assert told == [("a", "task", "batch"), ("b", "other", "next"), ("c", "task", "batch")]
    assert [program.latency_ms for program in found] == [1.0, 2.0, 3.0]
    assert names_of(table.programs(["other"], "model")) == "b"


def test_what_is_timed_cold_is_another_device_model_to_the_table(
    table: MemoryLedger, tmp_path: Path
) -> None:
    class Builder:
        def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
            return [Library(job.path) for job in jobs]

    for cold in (False, True):
        trials = Trials(
            Builder(),
            Gauge(order=[0]),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            table,
            TuneConfig(),
            tmp_path,
            lambda cold=cold: cold,  # type: ignore[misc]
        )
        (library,) = trials.build([trial_of_a_module()]).result()
        assert library.is_timed_cold == cold
        library.path.touch()
        trials.measure([trial("a", 0)], [library])
        assert trials.measured_as == ("model, cold" if cold else "model")
        (program,) = table.programs(["task"], trials.measured_as)
        assert program.device_model == trials.measured_as


def test_batches_stay_in_the_order_in_which_they_were_begun() -> None:
    def program(name: str, batch: str, position: int) -> Program:
        return Program(
            program_id=name,
            task_id="task",
            device_model="model",
            trace="",
            source="search",
            batch=batch,
            position=position,
            measurement=None,
        )

    answered = [
        program("b", "z", 1),
        program("a", "z", 0),
        program("d", "y", 1),
        program("c", "y", 0),
    ]
    assert names_of(as_proposed(answered)) == "abcd"


def test_what_was_answered_before_the_devices_were_lost_is_stored(
    table: MemoryLedger, tmp_path: Path
) -> None:
    with pytest.raises(DeviceLost, match="none is left"):
        measure(Gauge(order=[1, 9]), table, "abc", tmp_path)
    assert names_of(stored(table)) == "b"


def test_beside_its_origin_a_program_is_measured_on_the_same_device(
    table: MemoryLedger, tmp_path: Path
) -> None:
    gauge = Gauge(devices=["one", "one", "fails", "one"])
    found = measure(gauge, table, "abc", tmp_path, beside=Library(tmp_path / "origin.so"))
    assert gauge.asked == ["beside:batch:task", "a", "b", "c"]
    assert [program.beside_ms for program in found] == [1.0, None, 1.0]
    assert [program.error for program in found] == ["", "it crashed", ""]


def test_where_another_device_takes_over_the_origin_is_measured_there_too(
    table: MemoryLedger, tmp_path: Path
) -> None:
    gauge = Gauge(devices=["one", "one", "two", "two", "two"])
    found = measure(gauge, table, "abc", tmp_path, beside=Library(tmp_path / "origin.so"))
    origin = "beside:batch:task"
    assert gauge.asked == [origin, "a", "b", f"{origin}:two", "c"]
    assert [program.beside_ms for program in found] == [1.0, 4.0, 4.0]


def test_no_ratio_is_taken_of_two_devices(table: MemoryLedger, tmp_path: Path) -> None:
    gauge = Gauge(devices=["one", "two", "three"])
    (found,) = measure(gauge, table, "a", tmp_path, beside=Library(tmp_path / "origin.so"))
    assert found.measurement is not None and found.beside_ms is None


def test_an_origin_that_does_not_run_is_asked_once(table: MemoryLedger, tmp_path: Path) -> None:
    gauge = Gauge(devices=["fails", "one", "two"])
    found = measure(gauge, table, "ab", tmp_path, beside=Library(tmp_path / "origin.so"))
    assert gauge.asked == ["beside:batch:task", "a", "b"]
    assert [program.beside_ms for program in found] == [None, None]
    unbuilt = Library(tmp_path / "origin.so", error="no room")
    gauge = Gauge(devices=["one", "two"])
    found = measure(gauge, table, "cd", tmp_path, beside=unbuilt)
    assert gauge.asked == ["not beside:batch:task", "c", "d"]
    assert [program.beside_ms for program in found] == [None, None]


def test_each_row_is_compared_with_its_own_origin(table: MemoryLedger, tmp_path: Path) -> None:
    gauge: Any = Gauge(devices=["one"] * 5)
    trials = Trials(None, gauge, None, table, TuneConfig(), tmp_path)  # type: ignore[arg-type]
    rows = [
        Alongside(
            Library(tmp_path / f"origin-{names}.so"),
            [replace(trial(name, 0), batch=names) for name in names],
            [Library(tmp_path / f"{name}.so") for name in names],
        )
        for names in ("ab", "c")
    ]
    found = trials.measure_beside(rows)
    assert gauge.asked == ["beside:ab:task", "a", "b", "beside:c:task", "c"]
    assert [(p.program_id, p.beside_ms) for p in found] == [("a", 1.0), ("b", 1.0), ("c", 4.0)]
