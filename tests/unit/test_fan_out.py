"""Builds shared out over builders, some of them distant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from workers.compiling.builder import BuildJob, Library
from workers.compiling.fan_out import BuilderLost, Built, FanOut, shared_out


class Local:
    """Writes what it builds; a module called ``bad`` does not build."""

    def __init__(self) -> None:
        self.built: list[str] = []

    def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
        libraries = []
        for job in jobs:
            self.built.append(job.module)
            if job.module == "bad":
                libraries.append(Library(job.path, error="took too long"))
                continue
            job.path.write_text(f"here: {job.module}")
            libraries.append(Library(job.path, (("float32", (1,)),), 0.1))
        return libraries


class Distant:
    def __init__(self, parallel: int, *, lost: bool = False) -> None:
        self.parallel = parallel
        self.built: list[str] = []
        self._lost = lost

    def build(self, jobs: Sequence[BuildJob], timeout_s: float) -> list[Built]:
        if self._lost:
            raise BuilderLost("gone")
        self.built += [job.module for job in jobs]
        return [
            Built(b"", (), 0.0, "crashed")
            if job.module == "bad"
            else Built(f"there: {job.module}".encode(), (("float32", (1,)),), 0.1, "")
            for job in jobs
        ]


def jobs(folder: Path, modules: Sequence[str]) -> list[BuildJob]:
    return [BuildJob(module, folder / f"{i}.so") for i, module in enumerate(modules)]


def test_every_builder_gets_its_share_and_libraries_lie_where_they_were_wanted(
    tmp_path: Path,
) -> None:
    local, distant = Local(), Distant(6)
    wanted = jobs(tmp_path, [f"m{i}" for i in range(16)])
    libraries = FanOut(local, 2, lambda: [distant]).build(wanted, 5.0)
    assert (len(local.built), len(distant.built)) == (4, 12)
    assert [library.path for library in libraries] == [job.path for job in wanted]
    for job, library in zip(wanted, libraries, strict=True):
        place = "here" if job.module in local.built else "there"
        assert library.path.read_text() == f"{place}: {job.module}"
        assert library.arguments == (("float32", (1,)),) and not library.error


def test_a_lost_builders_share_is_built_here(tmp_path: Path) -> None:
    local = Local()
    wanted = jobs(tmp_path, [f"m{i}" for i in range(8)])
    libraries = FanOut(local, 1, lambda: [Distant(3, lost=True)]).build(wanted, 5.0)
    assert sorted(local.built) == sorted(job.module for job in wanted)
    assert not any(library.error for library in libraries)


def test_what_a_distant_machine_lacked_is_built_here(tmp_path: Path) -> None:
    class Short(Distant):
        def build(self, jobs: Sequence[BuildJob], timeout_s: float) -> list[Built]:
            built = super().build(jobs, timeout_s)
            full, late = "No space left on device", "took too long"
            built[0] = Built(b"", (), 0.0, full, "machine")
            built[1] = Built(b"", (), 0.0, late, "time")
            return built

    local, distant = Local(), Short(3)
    libraries = FanOut(local, 1, lambda: [distant]).build(
        jobs(tmp_path, [f"m{i}" for i in range(8)]), 5.0
    )
    assert local.built[2:] == distant.built[:1]
    assert [library.error for library in libraries if library.error] == ["took too long"]


def test_what_does_not_build_is_said_by_whoever_tried(tmp_path: Path) -> None:
    wanted = jobs(tmp_path, ["bad"] * 8)
    libraries = FanOut(Local(), 2, lambda: [Distant(2)]).build(wanted, 5.0)
    assert sorted(library.error for library in libraries) == ["crashed"] * 4 + ["took too long"] * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_few_jobs_are_not_worth_sending(count: int, tmp_path: Path) -> None:
    local, distant = Local(), Distant(8)
    FanOut(local, 2, lambda: [distant]).build(jobs(tmp_path, ["m"] * count), 5.0)
    assert len(local.built) == count and distant.built == []


def test_shares_follow_what_is_built_at_once() -> None:
    assert [len(share) for share in shared_out(16, [2, 2, 4])] == [4, 4, 8]
    assert sorted(index for share in shared_out(7, [3, 1]) for index in share) == list(range(7))
