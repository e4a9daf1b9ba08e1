"""How a cut is trained: by labels or distilled, at once or in steps, for equally many epochs.

    python benchmarks/cuts.py [--seeds N] [--width half] [--width quarter]

The network, the images and the recipe are those of ``cprune compare examples/compare.yaml
--quick``. For each seed the images are drawn anew and the dense network is trained; then every
width is halved, and quartered, and each way of fine-tuning has as many epochs as the way in steps
takes. Accuracies are of the best epoch, on the validation images. Nothing is compiled. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from device_agents.host_facts import allowed_cores, cpu_model
from orchestrator.compare.methods import quick
from orchestrator.configuration import load_config
from schemas.config import RunConfig
from schemas.network import Structure, Trained
from schemas.work import FineTuned, FineTuneWork
from workers.artifacts import ArtifactStore
from workers.jobs import TrainingJobs
from workers.networks import Networks
from workers.pruning.gradual import steps_for
from workers.training.train import train

CONFIG = Path(__file__).parent.parent / "examples" / "compare.yaml"
WIDTHS = {"half": 0.5, "quarter": 0.25}


@dataclass(frozen=True)
class Row:
    """One training of one seed; ``lost`` is of accuracy, against the dense network."""

    seed: int
    width: str
    macs: int
    distilled: bool
    in_steps: bool
    epochs: int
    dense: float
    accuracy: float
    lost: float
    train_s: float


def main() -> None:
    """Train, print a line for each training and the means over the seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", action="append", choices=WIDTHS, help="only this one")
    arguments = parser.parse_args()
    base = quick(load_config(CONFIG))
    print(f"{cpu_model()}, {len(allowed_cores())} threads; {base.data.title}")
    rows: list[Row] = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="cprune-cuts-") as folder:
            world = _World(base.model_copy(update={"seed": seed}), Path(folder))
            for width in arguments.width or WIDTHS:
                for row in world.trainings(width):
                    rows.append(row)
                    print(_line(row), flush=True)
    print(f"\nmeans of {arguments.seeds} seeds")
    for _, group in itertools.groupby(sorted(rows, key=_way), key=_way):
        same = list(group)
        lost = [100 * row.lost for row in same]
        scatter = f" ({min(lost):.2f} to {max(lost):.2f})" if len(lost) > 1 else ""
        seconds = statistics.mean(row.train_s for row in same)
        told = f"{statistics.mean(lost):.2f} points lost{scatter}, {seconds:.0f} s"
        print(f"{_name(same[0])}: {told}")
    print(json.dumps([asdict(row) for row in rows]))


class _World:
    """One seed's images and dense network."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config = config
        self._networks = Networks(config, ArtifactStore(str(folder)))
        threads = len(allowed_cores())
        self._jobs = TrainingJobs(self._networks, threads=threads)
        model = self._networks.dense()
        outcome = train(model, self._networks.splits, config.train, config.seed, threads=threads)
        self._dense = Trained(
            structure=Structure(),
            weights=self._networks.store(model.eval()),
            val_accuracy=outcome.val_accuracy,
            info=self._networks.info(model),
            train_s=outcome.train_s,
            epochs=config.train.epochs,
        )

    def trainings(self, width: str) -> list[Row]:
        """Every way of training this width."""
        groups = [group for group in self._networks.groups if group.prunable]
        structure = Structure(widths={g.group_id: g.share(WIDTHS[width]) for g in groups})
        macs = self._networks.info(self._networks.of_structure(structure)).macs
        recipe = self._config.fine_tune
        most = recipe.most_pruned_at_once
        steps = steps_for(self._dense.info.macs, macs, most)
        rows = []
        for distilled, in_steps in itertools.product((False, True), repeat=2):
            work = FineTuneWork(
                parent=self._dense,
                structure=structure,
                epochs=recipe.long_epochs * (1 if in_steps else steps),
                learning_rate=recipe.long_learning_rate,
                most_pruned_at_once=most if in_steps else 1.0,
                teacher=self._dense if distilled else None,
            )
            done = self._jobs.run(work)
            assert isinstance(done, FineTuned)
            rows.append(
                Row(
                    seed=self._config.seed,
                    width=width,
                    macs=macs,
                    distilled=distilled,
                    in_steps=in_steps,
                    epochs=done.network.epochs,
                    dense=self._dense.val_accuracy,
                    accuracy=done.network.val_accuracy,
                    lost=self._dense.val_accuracy - done.network.val_accuracy,
                    train_s=done.network.train_s,
                )
            )
        return rows


def _way(row: Row) -> tuple[float, bool, bool]:
    return -WIDTHS[row.width], row.distilled, row.in_steps


def _name(row: Row) -> str:
    teaching = "distilled" if row.distilled else "labels alone"
    way = "in steps" if row.in_steps else "at once"
    return f"{row.width} of every width ({row.macs / 1e6:.2f} M), {teaching}, {way}"


def _line(row: Row) -> str:
    reached = f"{100 * row.accuracy:.2f} % of {100 * row.dense:.2f}"
    return f"seed {row.seed}: {_name(row)}: {reached}, {row.epochs} epochs, {row.train_s:.0f} s"


if __name__ == "__main__":
    main()
