"""Searchers: processes in which rounds of search of several tasks are carried out at once.

How many run at a time changes when programs are found, never which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from device_agents.host_cores import CORES_WAIT_S, HostCores
from device_agents.processes import ProcessError, WarmProcess
from schemas.base import Schema
from workers.errors import LimitReached
from workers.tuning.search_jobs import Features, FeaturesJob, FoundProgram, SearchJob

_CORES_PER_ROUND = 4
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 8
_JOB_S = 600.0
_WAIT_S = CORES_WAIT_S + 30.0
_TRACES_PER_JOB = 16


class Searchers:
    """Carries out rounds of search for one target in forked children of a warm process."""

    def __init__(
        self,
        target: dict[str, Any],
        parallel: int,
        cores: HostCores | None,
        lock_dir: Path,
        folder: Path,
    ) -> None:
        """``parallel`` children run at once; each takes the host's cores from ``cores``, if given.

        ``folder`` is for their temporary files.
        """
        self.usual_rounds = min(_MOST_ROUNDS, max(_LEAST_ROUNDS, parallel // _CORES_PER_ROUND))
        """Rounds that are worth searching at once, where the configuration does not say."""
        self._request = {
            "target": target,
            "timeout_s": _JOB_S,
            "parallel": parallel,
            "cores": None if cores is None else [str(lock_dir), cores.name],
            "folder": str(folder),
        }
        self._process = WarmProcess("workers.tuning.search_server", name="searchers")
        self._process.prepare()

    def propose(self, jobs: Sequence[SearchJob], booster: bytes) -> list[list[FoundProgram]]:
        """The programs of each round, with a cost model (see ``search_jobs.carry_out``).

        Raises ``LimitReached`` where a round took too long or the machine lacked what it needs,
        ``RuntimeError`` where the compiler failed.
        """
        answers = self._answers("search", jobs, booster=booster)
        return [[FoundProgram.model_validate(program) for program in found] for found in answers]

    def features(self, jobs: Sequence[FeaturesJob]) -> list[list[bytes]]:
        """The packed features of each job's programs. Raises as ``propose``."""
        parts = [(number, part) for number, job in enumerate(jobs) for part in _parts(job)]
        answers = self._answers("features", [part for _, part in parts])
        found: list[list[bytes]] = [[] for _ in jobs]
        for (number, _), answer in zip(parts, answers, strict=True):
            found[number] += Features.model_validate(answer).packed
        return found

    @property
    def pid(self) -> int | None:
        """Of the warm process."""
        return self._process.pid

    def close(self) -> None:
        """End the process and its children."""
        self._process.stop()

    def _answers(self, method: str, jobs: Sequence[Schema], **more: Any) -> list[Any]:
        """What each job found; one that the machine ended is carried out once more."""
        items = [job.model_dump(mode="json") for job in jobs]
        results = self._called(method, items, **more)
        ended = [position for position, result in enumerate(results) if result.get("unfinished")]
        again = self._called(method, [items[position] for position in ended], **more)
        for position, result in zip(ended, again, strict=True):
            results[position] = result
        for result in results:
            if result.get("unfinished"):
                raise _not_finished(result["error"])
            if "error" in result:
                raise RuntimeError(f"the search for programs failed: {result['error']}")
        return [result["found"] for result in results]

    def _called(self, method: str, items: Sequence[Any], **more: Any) -> list[dict[str, Any]]:
        if not items:
            return []
        request = {**self._request, **more, "items": list(items)}
        limit_s = _WAIT_S + (_JOB_S + 1) * len(items)
        try:
            answer = self._process.call_again(method, request, timeout_s=limit_s)
        except ProcessError as error:
            raise _not_finished(str(error)) from error
        return list(answer["results"])


def _parts(job: FeaturesJob) -> Iterator[FeaturesJob]:
    """The job in parts that run beside each other."""
    for begin in range(0, len(job.traces), _TRACES_PER_JOB):
        traces = job.traces[begin : begin + _TRACES_PER_JOB]
        yield job.model_copy(update={"traces": traces})


def _not_finished(error: str) -> LimitReached:
    return LimitReached(
        "tune",
        f"a round of search did not end: {error}",
        "run again where the machine was busy or short of memory; else lower "
        "tune.population_size, or tune.rounds_at_once",
    )
