"""Builds shared out over several builders: one of this machine, others on machines of a cluster.

What a distant builder made comes back as bytes and is written where the job wanted it. A builder
that is lost costs the time of its share, and a machine that is short of something that of the job:
the local one builds it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.compiling.builder import BuildJob, Library, ProgramBuilder, Unfinished
from workers.whole_files import room


@dataclass(frozen=True)
class Built:
    """What a distant builder made of a job: the library's bytes, or an error."""

    data: bytes
    arguments: tuple[tuple[str, tuple[int, ...]], ...]
    seconds: float
    error: str
    unfinished: Unfinished | None = None


class BuilderLost(RuntimeError):
    """A distant builder did not answer, or is gone."""


class DistantBuilder(Protocol):
    """A builder on another machine."""

    parallel: int
    """Builds it runs at once."""

    def build(self, jobs: Sequence[BuildJob], timeout_s: float) -> list[Built]:
        """Build every job; failures are in the results. Raises ``BuilderLost``."""
        ...


class DistantBuilders(Protocol):
    """The builders of a cluster's other machines."""

    def __call__(self) -> Sequence[DistantBuilder]:
        """Those that are there now."""
        ...

    def close(self) -> None:
        """End all of them."""
        ...


class FanOut:
    """A ``ProgramBuilder`` that gives every builder a share according to its parallel builds."""

    def __init__(
        self,
        local: ProgramBuilder,
        parallel: int,
        distant: Callable[[], Sequence[DistantBuilder]],
    ) -> None:
        """``parallel``: builds the local one runs at once. ``distant`` is asked for each batch."""
        self._local = local
        self._parallel = parallel
        self._distant = distant

    def build(self, jobs: list[BuildJob], timeout_s: float) -> list[Library]:
        """Build every job; failures are in the results."""
        distant = list(self._distant()) if len(jobs) > self._parallel else []
        if not distant:
            return self._local.build(jobs, timeout_s)
        shares = shared_out(len(jobs), [self._parallel, *(one.parallel for one in distant)])
        libraries: dict[int, Library] = {}
        with ThreadPoolExecutor(len(distant), thread_name_prefix="distant builds") as pool:
            asked = [
                (share, pool.submit(builder.build, [jobs[index] for index in share], timeout_s))
                for builder, share in zip(distant, shares[1:], strict=True)
                if share
            ]
            left = self._built_here(jobs, shares[0], timeout_s)
            libraries.update(left)
            for share, answer in asked:
                try:
                    built = answer.result()
                except BuilderLost:
                    libraries.update(self._built_here(jobs, share, timeout_s))
                    continue
                lacking = []
                for index, one in zip(share, built, strict=True):
                    libraries[index] = _written(jobs[index].path, one)
                    if one.unfinished == "machine":
                        lacking.append(index)
                libraries.update(self._built_here(jobs, lacking, timeout_s))
        return [libraries[index] for index in range(len(jobs))]

    def _built_here(
        self, jobs: Sequence[BuildJob], share: Sequence[int], timeout_s: float
    ) -> dict[int, Library]:
        built = self._local.build([jobs[index] for index in share], timeout_s)
        return dict(zip(share, built, strict=True))


def shared_out(jobs: int, parallel: Sequence[int]) -> list[list[int]]:
    """Indices of the jobs for each builder, in proportion to what it builds at once."""
    shares: list[list[int]] = [[] for _ in parallel]
    for index in range(jobs):
        rounds = [(len(share) + 1) / width for share, width in zip(shares, parallel, strict=True)]
        shares[rounds.index(min(rounds))].append(index)
    return shares


def _written(path: Path, built: Built) -> Library:
    if built.error:
        return Library(path, error=built.error, unfinished=built.unfinished)
    partial = path.with_name(f"arriving-{path.name}")
    with room(path.parent):  # not flushed to the disk: it does not outlive this process
        partial.write_bytes(built.data)
        os.replace(partial, path)
    return Library(path, built.arguments, built.seconds)
