"""What the cost model gains from samples of other networks, and what they cost.

    python benchmarks/cost_model.py [--quick] [--records FILE] [--only NETWORK]

Reads the programs of the networks of benchmarks/code.py from a record store (a copy of it), where
that benchmark has left them, and measures nothing on the device. Each network is held out in turn:
the samples are of the other networks' tasks, chosen as a run chooses them. How well a model knows
a task's programs is said by

- rank: Spearman's correlation of predicted speed and measured speed, 0 for a guess;
- pick: latency of the fastest of the 8 programs predicted to be the fastest, over the fastest one.

Medians over the network's tasks that have at least 32 programs (of four tasks or more), in three
situations, without and with samples:

- first: nothing of the network is measured; without samples the model guesses;
- next: 16 programs of each *other* task of the network are;
- own: 16 programs of each task, the judged one among them; the others of it are predicted.

Then seconds of one core that a training takes, for so many samples alone and with 16 programs of
each of 20 tasks besides, as early in a search. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from code_parts.networks import NETWORKS, network_and_image
from scores import Score, guessed, middle, score

from orchestrator.store.records import RecordStore, conditions_of, store_path
from orchestrator.store.samples import MOST_SAMPLES, chosen
from schemas.config import MeasureConfig
from schemas.table import Program, Sample
from schemas.target import TargetConfig
from workers.compiling.network import relax_network
from workers.compiling.tasks import TaskTable, build_table
from workers.compiling.winograd import winograd_forms
from workers.measuring.setup import resolve_target
from workers.pruning.fold import exported_program, fold_batch_norm
from workers.tuning.cost_model import RecordModel, packed
from workers.tuning.search import target_of
from workers.tuning.search_jobs import FeaturesJob, extract

_ROUND = 16
_LEAST_PROGRAMS = 2 * _ROUND
_LEAST_TASKS = 4  # of a network: a median of fewer tells little
_SIZES = (128, 256, 512, 1024, 2048)
_TASKS_TUNED = 20
_TRAININGS = 3

Tasks = dict[str, list[Program]]
"""Task -> its programs that ran, in the order in which they were first measured."""


class Bench:
    """The programs' features, and models trained on some of them."""

    def __init__(self, records: Path, most_programs: int) -> None:
        """Of each task's records, the ``most_programs`` that were measured first are looked at.

        The file ``records`` is written: times of use.
        """
        self._target = target_of(resolve_target(TargetConfig()))
        self._model = RecordModel()
        self._most_programs = most_programs
        self._records = records

    def tasks(self, name: str) -> dict[str, Tasks]:
        """Device model -> what the store has of the network's tasks; extracts the features."""
        table = self._table(name)
        found: dict[str, Tasks] = {}
        store = RecordStore(self._records, 1e12, conditions_of(MeasureConfig()))
        with closing(store), closing(sqlite3.connect(self._records)) as db:
            models = [row[0] for row in db.execute("SELECT DISTINCT device_model FROM record")]
            for device_model in models:
                of_tasks: Tasks = {}
                for program in store.take(list(table.workloads), device_model):
                    programs = of_tasks.setdefault(program.task_id, [])
                    if program.measurement is not None and len(programs) < self._most_programs:
                        programs.append(program)
                found[device_model] = {key: some for key, some in of_tasks.items() if some}
        for of_tasks in found.values():
            for task_id, programs in of_tasks.items():
                self._extract(table, task_id, programs)
        return found

    def begin_with(self, tasks: Tasks, limit: int) -> list[Sample]:
        """Let models begin with at most so many samples of these tasks; the samples."""
        programs = {p.program_id: p for of_task in tasks.values() for p in of_task}
        latest = sorted(tasks, key=lambda task_id: -_measured_at(tasks[task_id][-1]))
        ranked = (
            [
                (program.latency_ms, program.program_id, task_id, number)
                for number, program in enumerate(tasks[task_id])
            ]
            for task_id in latest
        )
        samples = [self._sample(programs[one[1]]) for one in chosen(ranked, limit)]
        self._model.begin_with(samples)
        return samples

    def train(self, tasks: Tasks) -> Trained:
        """A model of these records, and of the samples it begins with."""
        records = {
            task_id: {program.program_id: program.latency_ms for program in programs}
            for task_id, programs in tasks.items()
        }
        return Trained(self._model, self._model.fitted(records, 0))

    def train_s(self, tasks: Tasks) -> float:
        """Seconds of one core that a training takes: the median of some."""
        taken = []
        for _ in range(_TRAININGS):
            began = time.process_time()
            self.train(tasks)
            taken.append(time.process_time() - began)
        return statistics.median(taken)

    def _table(self, name: str) -> TaskTable:
        network, image = network_and_image(name)
        program = exported_program(fold_batch_norm(network, image), image)
        relax = relax_network(program, self._target, winograd_forms(program))
        return build_table(relax, self._target)

    def _extract(self, table: TaskTable, task_id: str, programs: Sequence[Program]) -> None:
        unknown = [p for p in programs if not self._model.knows(p.program_id)]
        traces = tuple(program.trace for program in unknown)
        job = FeaturesJob(task_id=task_id, module=table.workloads[task_id].text, traces=traces)
        for program, features in zip(unknown, extract(job, self._target).packed, strict=True):
            self._model.keep(program.program_id, features)

    def _sample(self, program: Program) -> Sample:
        return Sample(
            task_id=program.task_id,
            program_id=program.program_id,
            device_model=program.device_model,
            target="",
            latency_ms=program.latency_ms,
            features=packed(self._model.features(program.program_id)),
        )


@dataclass(frozen=True)
class Trained:
    """A fitted model and the features it predicts from."""

    features: RecordModel
    model: object

    def score(self, programs: Sequence[Program]) -> Score:
        """How well it knows these programs of one task."""
        rows = [self.features.features(program.program_id) for program in programs]
        predicted = self.model._predict(rows)  # type: ignore[attr-defined]
        return score(predicted, _latencies_ms(programs))


def judge(bench: Bench, own: Tasks, others: Tasks) -> Iterator[tuple[str, Score, Score]]:
    """Situation, score without samples and with them."""
    judged = {key: programs for key, programs in own.items() if len(programs) >= _LEAST_PROGRAMS}
    begun = {task_id: programs[:_ROUND] for task_id, programs in own.items()}
    found: dict[str, tuple[list[Score], list[Score]]] = {
        name: ([], []) for name in ("first", "next", "own")
    }
    for with_samples in (0, 1):
        bench.begin_with(others if with_samples else {}, MOST_SAMPLES)
        if with_samples:
            first = bench.train({})
            found["first"][1].extend(first.score(programs) for programs in judged.values())
        else:
            found["first"][0].extend(
                guessed([p.latency_ms for p in some]) for some in judged.values()
            )
        after = bench.train(begun)
        for task_id, programs in judged.items():
            rest = {key: some for key, some in begun.items() if key != task_id}
            found["next"][with_samples].append(bench.train(rest).score(programs))
            found["own"][with_samples].append(after.score(programs[_ROUND:]))
    for name, (without, with_them) in found.items():
        yield name, middle(without), middle(with_them)


def main() -> None:
    """Print the tables."""
    arguments = _parse()
    stored: dict[str, dict[str, Tasks]] = {}  # device model -> network -> tasks
    with _copy(arguments.records) as records:
        bench = Bench(records, 32 if arguments.quick else 64)
        for name in arguments.only or NETWORKS:
            for device_model, tasks in bench.tasks(name).items():
                stored.setdefault(device_model, {})[name] = tasks
    label = " (quick)" if arguments.quick else ""
    print(f"{'network' + label:<24}{'timed as':<22}{'tasks':>6}{'samples':>9}", end="")
    print(f"  {'situation':<10}{'rank':>6}{'with':>7}{'pick':>8}{'with':>7}")
    gains: dict[str, list[tuple[Score, Score]]] = {}
    for device_model, networks in stored.items():
        for name, own in networks.items():
            judged = sum(len(programs) >= _LEAST_PROGRAMS for programs in own.values())
            others = {
                task_id: programs
                for other, tasks in networks.items()
                if other != name
                for task_id, programs in tasks.items()
                if task_id not in own
            }
            samples = len(bench.begin_with(others, MOST_SAMPLES))
            if judged < _LEAST_TASKS or not samples:
                continue
            for situation, without, with_them in judge(bench, own, others):
                gains.setdefault(situation, []).append((without, with_them))
                print(
                    f"{name:<24}{device_model:<22}{judged:>6}{samples:>9}  {situation:<10}", end=""
                )
                print(f"{without.rank:>6.2f}{with_them.rank:>7.2f}", end="")
                print(f"{without.pick:>8.2f}{with_them.pick:>7.2f}", flush=True)
    if not gains:
        raise SystemExit(
            f"{arguments.records} holds too few programs of two of the networks, as they are "
            "compiled for this machine: run benchmarks/code.py first"
        )
    everything = {
        task_id: programs
        for tasks in max(stored.values(), key=_programs).values()
        for task_id, programs in tasks.items()
    }
    tuned = dict(list(everything.items())[:_TASKS_TUNED])
    begun = {task_id: programs[:_ROUND] for task_id, programs in tuned.items()}
    rest = {key: programs for key, programs in everything.items() if key not in tuned}
    print(f"\n{'samples':>8}{'s a training':>14}{'and 20 tasks':>14}{'bytes each':>12}")
    seconds = {}
    for size in (0, *_SIZES):
        samples = bench.begin_with(rest, size)
        if str(len(samples)) in seconds:
            break  # the store has no more
        each = statistics.mean([len(sample.features) for sample in samples] or [0])
        alone_s, besides_s = bench.train_s({}), bench.train_s(begun)
        seconds[str(len(samples))] = round(besides_s, 3)
        print(f"{len(samples):>8}{alone_s:>14.2f}{besides_s:>14.2f}{each:>12.0f}", flush=True)
    figures: dict[str, object] = {"train_s": seconds}
    for situation, scores in gains.items():
        for which, name in ((0, "without"), (1, "with")):
            of_all = middle([pair[which] for pair in scores])
            figures[f"{situation}_rank_{name}"] = round(of_all.rank, 3)
            figures[f"{situation}_pick_{name}"] = round(of_all.pick, 3)
    print(json.dumps(figures | ({"quick": True} if arguments.quick else {})))


def _latencies_ms(programs: Sequence[Program]) -> list[float]:
    return [program.latency_ms for program in programs]


def _programs(networks: dict[str, Tasks]) -> int:
    return sum(len(some) for tasks in networks.values() for some in tasks.values())


def _measured_at(program: Program) -> float:
    assert program.measurement is not None
    return program.measurement.measured_at


@contextmanager
def _copy(records: Path) -> Iterator[Path]:
    """A copy of the store, which others may be writing."""
    with tempfile.TemporaryDirectory(prefix="cprune-cost-model-") as folder:
        path = Path(folder) / "records.sqlite"
        address = f"{records.absolute().as_uri()}?mode=ro"
        with (
            closing(sqlite3.connect(address, uri=True)) as source,
            closing(sqlite3.connect(path)) as copy,
        ):
            source.backup(copy)
        yield path


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="32 programs of each task")
    parser.add_argument("--only", action="append", choices=sorted(NETWORKS), metavar="NETWORK")
    parser.add_argument("--records", type=Path, default=store_path(), help="measured programs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
