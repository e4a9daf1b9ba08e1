"""Libraries of whole networks: which stay on the disk, and what a comparison says of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_world
import pytest

from schemas.config import PruneConfig, RunConfig
from schemas.network import Structure, Trained
from schemas.table import KnownTask, Program
from schemas.work import CompareWork
from workers.errors import LimitReached, UserError
from workers.measuring.gauge import Attribution, ProgramFailed
from workers.tuning.libraries import NetworkLibraries

CONFIG = RunConfig(prune=PruneConfig(max_accuracy_drop=0.1))
PART: Any = None


def test_of_the_networks_libraries_only_the_last_few_stay(tmp_path: Path) -> None:
    libraries = NetworkLibraries(PART, PART, PART, PART, CONFIG, tmp_path)
    for number in (0, 1, 2, 3, 0, 4):  # the parent is used again
        path = tmp_path / f"network-{number}.so"
        libraries.make_room(path)
        path.touch()
    assert sorted(path.stem[-1] for path in tmp_path.iterdir()) == ["0", "2", "3", "4"]


class Gauge:
    """A device on which comparisons fail."""

    device_s = 0.0

    def compare(self, *question: Any) -> None:
        raise ProgramFailed("crashed with SIGSEGV")

    def release(self) -> None:
        self.device_s += 1.0


class Libraries(NetworkLibraries):
    """``errors``: what the build of the "wide" or of the "narrow" network raises."""

    errors: dict[str, Exception]
    done: list[str]

    def _choose_new_inside(self, trained: Trained, occasion: str) -> None:
        self.done.append("chosen inside the narrow" if trained.structure == NARROW else "wide")

    def build(self, trained: Trained, fraction: float | None = None) -> tuple[Path, str]:
        name = "narrow" if trained.structure == NARROW else "wide"
        if name in self.errors:
            raise self.errors[name]
        self.done.append(f"{name} built")
        return Path("network.so"), "key"


WIDE, NARROW = Structure(), Structure(widths={"deep": 8})
WORK = CompareWork(
    target="host",
    reference=fake_world.network(WIDE),
    candidate=fake_world.network(NARROW),
    label="step",
)


def libraries(folder: Path, **errors: Exception) -> Libraries:
    gauge: Any = Gauge()
    found = Libraries(PART, PART, PART, gauge, CONFIG, folder)
    found.errors, found.done = errors, []
    return found


def test_a_candidates_programs_are_chosen_inside_it_as_the_references_were(tmp_path: Path) -> None:
    """What is built last is what is used: libraries of line-ups may have taken its room before."""
    found = libraries(tmp_path)
    found.compare(WORK)
    assert found.done[-3:] == ["chosen inside the narrow", "narrow built", "wide built"]


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ({"narrow": UserError("tune.model_build_timeout_s", "LLVM crashed")}, "LLVM crashed"),
        ({}, "did not run on the device: crashed with SIGSEGV"),
    ],
)
def test_a_candidate_that_does_not_build_or_run_has_no_comparison(
    errors: dict[str, Exception], told: str, tmp_path: Path
) -> None:
    found = libraries(tmp_path, **errors).compare(WORK)
    assert found.comparison is None and told in found.failed and found.device_s == 1.0


@pytest.mark.parametrize(
    "errors",
    [
        {"narrow": LimitReached("tune.model_build_timeout_s", "took longer than 9 s")},
        {"wide": UserError("tune.model_build_timeout_s", "LLVM crashed")},
    ],
)
def test_a_time_limit_and_a_reference_that_does_not_build_say_nothing_of_the_candidate(
    errors: dict[str, Exception], tmp_path: Path
) -> None:
    with pytest.raises(UserError):
        libraries(tmp_path, **errors).compare(WORK)


class Watched(NetworkLibraries):
    """Every call takes 2 ms on a device that can watch; ``fractions``: which networks it saw."""

    fractions: list[float | None]

    def _watched(self, trained: Trained, fraction: float | None, *_: Any) -> Attribution:
        self.fractions.append(fraction)
        return Attribution(3.0, tuple((site, 2.0) for site in SITES))


TUNED = fake_world.tuned(WIDE, "host")
SITES = [f"site{number}" for number, _ in enumerate(TUNED.table.subgraphs)]


def test_for_a_comparison_only_what_was_never_watched_is_chosen_inside() -> None:
    """The reference may have the other tasks, and was chosen among more."""
    old, new = (entry.task_id for entry in TUNED.latencies[:2])
    stored = {entry.task_id: [] for entry in TUNED.latencies} | {
        task_id: [
            Program(
                program_id=f"{task_id} {number}",
                task_id=task_id,
                device_model="m",
                trace="[[],[]]",
                source="search",
                inside_ms=inside_ms,
                measurement=fake_world.measurement(1.0 + number / 100),
            )
            for number in range(3)
        ]
        for task_id, inside_ms in ((old, 3.0), (new, None))
    }
    bundle = SimpleNamespace(
        table=TUNED.table,
        relax=SimpleNamespace(sites=[SimpleNamespace(function=site) for site in SITES]),
        task_ids=list(stored),
    )
    recorded: dict[tuple[str, str], float] = {}
    tuner: Any = SimpleNamespace(
        check_fastest=lambda *_: None,
        stored=lambda _: stored,
        record_inside=lambda _, inside_ms: recorded.update(inside_ms),
    )
    bundles: Any = SimpleNamespace(of_structure=lambda *_: bundle)
    gauge: Any = Gauge()
    found = Watched(bundles, tuner, PART, gauge, CONFIG, Path("."))
    found.fractions = []
    found._choose_new_inside(fake_world.network(), "round 1")
    assert set(recorded) == {(new, f"{new} 0"), (new, f"{new} 1")}
    assert len(found.fractions) == 4, "two line-ups, twice"


def test_choosing_inside_keeps_what_else_the_tuning_found() -> None:
    first = TUNED.latencies[0].task_id
    programs = [
        Program(
            program_id=name,
            task_id=first,
            device_model="m",
            trace="[[],[]]",
            source="search",
            measurement=fake_world.measurement(1.0),
        )
        for name in ("one", "other")
    ]
    chosen: dict[tuple[str, str], float] = {}
    bundle = SimpleNamespace(
        table=TUNED.table,
        relax=SimpleNamespace(sites=[SimpleNamespace(function=site) for site in SITES]),
        task_ids=[entry.task_id for entry in TUNED.latencies],
    )
    stored = {entry.task_id: programs[:0] for entry in TUNED.latencies} | {first: programs}
    asked: list[float | None] = []
    bundles: Any = SimpleNamespace(
        of_structure=lambda _, fraction: asked.append(fraction) or bundle
    )
    tuner: Any = SimpleNamespace(
        check_fastest=lambda *_: None,
        stored=lambda _: stored,
        record_inside=lambda _, inside_ms: chosen.update(inside_ms),
        latencies=lambda _: TUNED.latencies,
    )
    gauge: Any = Gauge()
    found = Watched(bundles, tuner, PART, gauge, CONFIG, Path("."))
    found.fractions = []
    known = KnownTask(task_id="t", kind="conv2d", macs=1, output_shape=(1,), latency_ms=1.0)
    before = TUNED.model_copy(update={"earlier": (known,)})
    tuned = found.chosen_inside(before, fake_world.network(), "work", 0.5)
    assert set(chosen) == {(first, "one"), (first, "other")}
    assert tuned.earlier == (known,) and tuned.model_ms == 3.0
    assert {entry.in_model_ms for entry in tuned.latencies} == {2.0}
    assert set(found.fractions) == set(asked) == {0.5}
