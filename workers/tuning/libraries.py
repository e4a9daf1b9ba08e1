"""Whole networks as compiled libraries, and their comparison on the device."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from tvm.ir import save_json

from schemas.base import content_key
from schemas.config import RunConfig
from schemas.network import Trained
from schemas.table import NetworkTable
from schemas.work import Compared, CompareWork, Tuned
from workers.compiling.builder import Builder
from workers.errors import LimitReached, UserError
from workers.measuring.gauge import Attribution, Gauge, ProgramFailed
from workers.measuring.occasions import compare_until_sure
from workers.tuning.bundle import Bundles
from workers.tuning.finalists import TURNS, LineUp, inside_latencies, line_ups
from workers.tuning.stored import fastest
from workers.tuning.tuner import Tuner

_PACKED = "_prepacked"
_KEPT_LIBRARIES = 4
"""The parent's and those of a round that are compared with it."""
_FINALISTS_OF_A_CANDIDATE = 2
"""The fastest by itself and, of small tasks, the fastest on one core: threads that wait for each
other cost a network more than its parent whose programs were chosen so, by half in a slow spell of
a machine (benchmarks/EXPERIMENTS.md, candidates chosen inside). A step is tuned further anyway."""
_TURNS_OF_A_CANDIDATE = 2


class NetworkLibraries:
    """Builds each network once for each set of its fastest programs."""

    def __init__(
        self,
        bundles: Bundles,
        tuner: Tuner,
        builder: Builder,
        gauge: Gauge,
        config: RunConfig,
        scratch: Path,
    ) -> None:
        self._bundles = bundles
        self._tuner = tuner
        self._builder = builder
        self._gauge = gauge
        self._config = config
        self._scratch = scratch
        self._used: list[Path] = []

    def build(self, trained: Trained, fraction: float | None = None) -> tuple[Path, str]:
        """The network's library with the fastest programs stored now, and its content key.

        No program goes into it whose output was not compared with the untuned one's.

        Raises ``UserError`` when it does not build in ``tune.model_build_timeout_s``.
        """
        bundle = self._bundles.of_structure(trained.structure, fraction)
        self._tuner.check_fastest(bundle)
        stored = self._tuner.stored(bundle)
        best = {task_id: fastest(stored[task_id]) for task_id in bundle.task_ids}
        line_up = {task_id: program for task_id, program in best.items() if program is not None}
        return self._built(trained, fraction, line_up)

    def _built(self, trained: Trained, fraction: float | None, line_up: LineUp) -> tuple[Path, str]:
        bundle = self._bundles.of_structure(trained.structure, fraction)
        identities = [program.program_id for program in line_up.values()]
        key = content_key(trained.weights, trained.structure, fraction, identities)
        path = self._scratch / f"network-{key[:24]}.so"
        self.make_room(path)
        if path.exists():
            return path, key
        weights = self._bundles.weights(trained, fraction)
        needed = {name: weights[name] for name in bundle.relax.parameters}
        partial = path.with_name(f"building-{path.name}")
        library = self._builder.build_network(
            str(save_json(bundle.relax.module)),
            [
                (bundle.workloads[task_id].text, program.trace)
                for task_id, program in line_up.items()
            ],
            needed,
            partial,
            self._config.tune.model_build_timeout_s,
        )
        if library.error:
            kind = LimitReached if library.unfinished else UserError
            raise kind(
                "tune.model_build_timeout_s",
                f"the network's library did not build: {library.error}",
                "raise it if that was the time limit",
            )
        partial.rename(path)
        return path, key

    def make_room(self, path: Path) -> None:
        """Before a library is used: of those used earlier only the last few stay.

        Each holds a network's weights: a search would fill a disk with them.
        """
        self._used = [*(earlier for earlier in self._used if earlier != path), path]
        most = max(_KEPT_LIBRARIES, self._config.tune.finalists)
        for earlier in self._used[:-most]:
            earlier.unlink(missing_ok=True)
        self._used = self._used[-most:]

    def chosen_inside(
        self, tuned: Tuned, trained: Trained, occasion: str, fraction: float | None = None
    ) -> Tuned:
        """``attributed``, after each task's finalists were watched and the fastest there chosen.

        Arguments and errors are those of ``attributed``.
        """
        bundle = self._bundles.of_structure(trained.structure, fraction)
        count = self._config.tune.finalists
        self._tuner.check_fastest(bundle, count)
        ups = line_ups(self._tuner.stored(bundle), count)
        watched = self._watch_all(trained, fraction, ups, occasion, TURNS)
        if watched is None:
            return tuned
        self._tuner.record_inside(bundle, watched)
        tuned = tuned.model_copy(update={"latencies": self._tuner.latencies(bundle)})
        return self.attributed(tuned, trained, occasion, fraction)

    def _choose_new_inside(self, trained: Trained, occasion: str) -> None:
        """Watch two finalists of each task of which nothing was watched before.

        The others stay as they were chosen, among more: the network that this one is compared with
        may have them, too.
        """
        bundle = self._bundles.of_structure(trained.structure)
        count = min(_FINALISTS_OF_A_CANDIDATE, self._config.tune.finalists)
        self._tuner.check_fastest(bundle, count)
        stored = self._tuner.stored(bundle)
        new = {
            task_id: programs
            for task_id, programs in stored.items()
            if all(program.inside_ms is None for program in programs)
        }
        best = {task_id: fastest(programs) for task_id, programs in stored.items()}
        chosen = {task_id: program for task_id, program in best.items() if program is not None}
        ups = [{**chosen, **line_up} for line_up in line_ups(new, count)]
        watched = self._watch_all(trained, None, ups, occasion, _TURNS_OF_A_CANDIDATE)
        if watched is not None:
            of_new = {key: ms for key, ms in watched.items() if key[0] in new}
            self._tuner.record_inside(bundle, of_new)

    def _watch_all(
        self,
        trained: Trained,
        fraction: float | None,
        ups: Sequence[LineUp],
        occasion: str,
        turns: int,
    ) -> dict[tuple[str, str], float] | None:
        """What calls take inside, in ms, by task and program; None where the device cannot tell.

        Of a single line-up there is nothing to choose, so nothing is watched.
        """
        if len(ups) < 2:
            return {}
        bundle = self._bundles.of_structure(trained.structure, fraction)
        functions = [site.function for site in bundle.relax.sites]
        watched: list[list[dict[str, float]]] = []
        for turn in range(turns):
            watched.append([])
            for line_up in ups:
                found = self._watched(trained, fraction, line_up, f"{occasion}:{turn}")
                if found is None:
                    self._gauge.release()
                    return None
                watched[-1].append(task_times(bundle.table, functions, found))
        return inside_latencies(ups, watched)

    def attributed(
        self, tuned: Tuned, trained: Trained, occasion: str, fraction: float | None = None
    ) -> Tuned:
        """``tuned`` with what each task's call takes inside the compiled network.

        As it is, where the device cannot watch a network. ``occasion`` tells one question to the
        device from another about the same network. ``fraction``: of the uniform network, as for
        ``build``. Raises ``UserError`` as ``build``, and ``ProgramFailed``.
        """
        bundle = self._bundles.of_structure(trained.structure, fraction)
        stored = self._tuner.stored(bundle)
        best = {task_id: fastest(stored[task_id]) for task_id in bundle.task_ids}
        chosen = {task_id: program for task_id, program in best.items() if program is not None}
        found = self._watched(trained, fraction, chosen, occasion)
        self._gauge.release()
        if found is None:
            return tuned
        return in_model(tuned, [site.function for site in bundle.relax.sites], found)

    def _watched(
        self, trained: Trained, fraction: float | None, line_up: LineUp, occasion: str
    ) -> Attribution | None:
        path, key = self._built(trained, fraction, line_up)
        return self._gauge.attribute(f"attribute:{occasion}:{key}", path, trained.info.input_shape)

    def compare(self, work: CompareWork) -> Compared:
        """Measure two networks, paired and interleaved, on several occasions.

        The candidate's programs are chosen inside it before, as the reference's were: transplants
        that are the fastest by themselves may not be so there. No comparison, but the reason, for a
        candidate that does not build or run; the reference has done both before. Raises
        ``UserError`` as ``build`` where it does not build now, and where a time limit ended the
        candidate's build: that says nothing of the candidate.
        """
        device_s = self._gauge.device_s
        comparison, failed = None, ""
        self.build(work.reference)  # an error of its own is not the candidate's
        try:
            self._choose_new_inside(work.candidate, work.label)
            candidate, candidate_key = self.build(work.candidate)
            # The candidate's line-ups may have taken its room.
            reference, reference_key = self.build(work.reference)
            comparison = compare_until_sure(
                self._gauge,
                f"compare:{work.label}:{reference_key}:{candidate_key}",
                reference,
                candidate,
                work.reference.info.input_shape,
            )
        except LimitReached:
            raise
        except UserError as error:
            failed = str(error)
        except ProgramFailed as error:
            failed = f"the whole network did not run on the device: {error}"
        self._gauge.release()
        return Compared(
            comparison=comparison, failed=failed, device_s=self._gauge.device_s - device_s
        )


def in_model(tuned: Tuned, functions: Sequence[str], found: Attribution) -> Tuned:
    """``tuned`` with the mean latency of each task's calls.

    ``functions`` names the compiled function of each of the table's subgraphs, in their order. The
    compiler adds an ending to the names of those whose weights it has packed. Tasks that only
    rearrange weights are gone from the compiled network: they cost nothing.
    """
    kinds = {task.task_id: task.kind for task in tuned.table.tasks}
    means = task_times(tuned.table, functions, found)
    gone = {task_id: 0.0 for task_id, kind in kinds.items() if kind == "other"}
    latencies = [
        entry.model_copy(update={"in_model_ms": {**gone, **means}.get(entry.task_id)})
        for entry in tuned.latencies
    ]
    return tuned.model_copy(update={"latencies": tuple(latencies), "model_ms": found.model_ms})


def task_times(
    table: NetworkTable, functions: Sequence[str], found: Attribution
) -> dict[str, float]:
    """The mean latency of each task's calls in ms; ``functions`` as for ``in_model``."""
    tasks = {
        name: subgraph.task_id for name, subgraph in zip(functions, table.subgraphs, strict=True)
    }
    times: dict[str, list[float]] = {}
    for name, latency_ms in found.calls:
        task_id = tasks.get(name.removesuffix(_PACKED))
        if task_id is not None:
            times.setdefault(task_id, []).append(latency_ms)
    return {task_id: statistics.fmean(own) for task_id, own in times.items()}
