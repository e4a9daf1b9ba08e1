"""From a trained network to artefacts that run: prepare, tune, prune, export, load elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import tuning_world
import tvm
import tvm_ffi
from tuning_world import Table, tune_work
from tvm.s_tir import meta_schedule as ms

from orchestrator.report.snippets import library_lines
from schemas.base import Schema
from schemas.network import Structure, Trained
from schemas.work import (
    Exported,
    ExportWork,
    FineTuned,
    FineTuneWork,
    Prepared,
    PrepareWork,
    Tuned,
)
from workers.artifacts import ArtifactStore
from workers.export.deployment import Exporter, WrongLibrary
from workers.export.loading import load_pruned, read_description
from workers.jobs import TrainingJobs
from workers.measuring.occasions import OCCASIONS
from workers.networks import Networks
from workers.training.images import batches
from workers.tuning.worker import TuningWorker

Kind = TypeVar("Kind", bound=Schema)
WIDTHS = {"layer2.0.conv1": 8}
TRAIN = {"epochs": 1}


@dataclass(frozen=True)
class Finished:
    run_dir: Path
    networks: Networks
    dense: Trained
    final: Trained
    tuned: Tuned
    exported: Exported

    @property
    def folder(self) -> Path:
        return self.run_dir / "export" / tuning_world.TARGET

    def path(self, what: str) -> Path:
        return self.run_dir / self.exported.artifacts[what]

    def test_images(self, count: int) -> torch.Tensor:
        test = self.networks.splits.test
        return next(batches(test, count, torch.arange(count)))[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    with export(tmp_path_factory.mktemp("run")) as found:
        yield found


@contextmanager
def export(run_dir: Path) -> Iterator[Finished]:
    """Prepare, prune, tune and export in this folder."""
    context = tuning_world.context(run_dir, train=TRAIN)
    networks = Networks(context.config, ArtifactStore(context.artifacts))
    jobs = TrainingJobs(networks, threads=1)
    prepared = as_kind(Prepared, jobs.run(PrepareWork()))
    pruning = FineTuneWork(
        parent=prepared.dense, structure=Structure(widths=WIDTHS), epochs=0, learning_rate=0.01
    )
    final = as_kind(FineTuned, jobs.run(pruning)).network
    worker = TuningWorker(context, tuning_world.TARGET, Table())
    try:
        tuned = as_kind(Tuned, worker.run([tune_work(2, network=final)])[0])
        work = ExportWork(target=tuning_world.TARGET, dense=prepared.dense, final=final)
        exported = as_kind(Exported, worker.run([work])[0])
    finally:
        worker.close()
    yield Finished(run_dir, networks, prepared.dense, final, tuned, exported)


def as_kind(kind: type[Kind], outcome: object) -> Kind:
    assert isinstance(outcome, kind)
    return outcome


def test_every_task_has_its_trials(finished: Finished) -> None:
    for entry in finished.tuned.latencies:
        assert entry.trials >= 1 and entry.program_id is not None and entry.latency_ms > 0
    layers = [entry for entry in finished.tuned.latencies if entry.channel_tiles]
    assert all(entry.trials >= 2 for entry in layers), "what it is owed; more where it pays"


def test_the_artefacts_are_there(finished: Finished) -> None:
    assert set(finished.exported.artifacts) == {
        "weights",
        "structure",
        "exported_program",
        "onnx",
        "library",
        "tuning_workloads",
        "tuning_records",
    }
    assert finished.exported.notes == ()
    assert {path.name for path in finished.folder.iterdir()} == {
        "weights.safetensors",
        "structure.json",
        "model.pt2",
        "model.onnx",
        "model.so",
        "tuning",
    }
    for what, name in finished.exported.artifacts.items():
        assert not Path(name).is_absolute()
        assert finished.path(what).stat().st_size > 0
    assert list(finished.run_dir.rglob("building-*")) == []
    assert not (finished.run_dir / "scratch" / tuning_world.TARGET).exists()


def test_the_folder_says_how_its_library_is_run(finished: Finished) -> None:
    library = read_description(finished.folder)["library"]
    assert library["file"] == "model.so"
    assert library["threads"] == finished.exported.final.latency.threads
    assert library["runtime"]["apache-tvm"] == version("apache-tvm")


def test_the_pruned_network_comes_back(finished: Finished) -> None:
    back = load_pruned(finished.folder)
    wanted = finished.networks.load(finished.final)
    assert back.get_submodule("layer2.0.conv1").weight.shape[0] == 8
    state = wanted.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())
    images = finished.test_images(4)
    with torch.no_grad():
        assert torch.equal(back(images), wanted(images))


def test_a_library_that_computes_something_else_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exporter, "_check", lambda *_: (0.02, 10.0, 32))
    with pytest.raises(WrongLibrary, match="differ from torch's by up to"), export(tmp_path):
        pass
    folder = tmp_path / "export" / tuning_world.TARGET
    assert (folder / "structure.json").exists() and not (folder / "model.so").exists()


def test_the_librarys_outputs_are_torchs(finished: Finished) -> None:
    exported = finished.exported
    assert exported.max_abs_output > 0
    assert exported.max_abs_difference < 1e-4 * exported.max_abs_output
    assert exported.checked_images == 32


def test_whatever_the_library_makes_it_uses(finished: Finished) -> None:
    """A call of the virtual machine's own costs as much as some of a small network's layers."""
    code = tvm.runtime.load_module(str(finished.path("library")))["as_text"]()
    calls = re.findall(r"^ +call +(\S+) +in: (.*?) +dst: (\S+)$", code, re.MULTILINE)
    read = {name for _, given, _ in calls for name in given.split(", ")}
    read |= set(re.findall(r"^ +ret +(\S+)$", code, re.MULTILINE))
    clears = "vm.builtin.null_value"
    made = {into for name, _, into in calls if name != clears and into != "%void"}
    assert len(made) > 10 and made <= read


def test_both_networks_are_measured_and_judged(finished: Finished) -> None:
    exported = finished.exported
    for judged, trained in ((exported.dense, finished.dense), (exported.final, finished.final)):
        assert judged.latency.latency_ms > 0 and judged.latency.device_kind == "local"
        assert judged.val_accuracy == trained.val_accuracy and 0 < judged.test_accuracy <= 1
        assert judged.info == trained.info
    assert exported.final.info.macs < exported.dense.info.macs
    assert len(exported.speedup_ratios) == OCCASIONS
    for latency in (exported.dense.latency, exported.final.latency):
        assert len(latency.run_ms) == OCCASIONS
    by_themselves = [
        [entry.model_copy(update={"in_model_ms": None}) for entry in tuned.latencies]
        for tuned in (exported.final_tuned, finished.tuned)
    ]
    assert by_themselves[0] == by_themselves[1], "inside the network they are measured once more"


def test_the_tuning_records_open_as_a_database(finished: Finished) -> None:
    database = ms.database.JSONDatabase(
        path_workload=str(finished.path("tuning_workloads")),
        path_tuning_record=str(finished.path("tuning_records")),
    )
    records = database.get_all_tuning_records()
    assert len(records) == len(finished.tuned.latencies)
    times = sorted(1000 * float(np.median([float(s) for s in r.run_secs])) for r in records)
    assert times == pytest.approx(sorted(e.latency_ms for e in finished.tuned.latencies))


def test_the_library_runs_by_the_lines_of_the_report(finished: Finished, tmp_path: Path) -> None:
    """TVM's runtime and the exported folder are all it takes."""
    images = finished.test_images(1)
    np.save(tmp_path / "images.npy", images.numpy())
    lines = library_lines(
        str(finished.path("library")),
        device="cpu",
        threads=1,
        shape=(1, 1, 16, 16),
        dtype="float32",
    )
    zeros = 'numpy.zeros((1, 1, 16, 16), "float32")'
    assert zeros in lines
    script = lines.replace(zeros, f"numpy.load({str(tmp_path / 'images.npy')!r})")
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nprint(*logits[0])"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_logits(finished, images, done.stdout)


def test_the_library_runs_from_c_plus_plus(finished: Finished, tmp_path: Path) -> None:
    """The example's source, by the commands at its top."""
    images = finished.test_images(1)
    source = Path(__file__).parents[2] / "examples" / "deploy.cc"
    tvm_folder, ffi_folder = (Path(module.__file__).parent for module in (tvm, tvm_ffi))
    folders = (tvm_folder, ffi_folder)
    program = tmp_path / "deploy"
    subprocess.run(
        ["g++", "-std=c++17", "-O2", str(source), "-o", str(program)]
        + [f"-I{folder / 'include'}" for folder in folders]
        + [f"-L{folder / 'lib'}" for folder in folders]
        + ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi"],
        check=True,
        timeout=120,
    )
    done = subprocess.run(
        [program, finished.path("library"), "1", "1", "16", "16"],
        input=images.numpy().tobytes(),
        capture_output=True,
        timeout=60,
        env={
            "TVM_NUM_THREADS": "1",
            "LD_LIBRARY_PATH": ":".join(str(folder / "lib") for folder in folders),
        },
    )
    assert done.returncode == 0, done.stderr
    assert_logits(finished, images, done.stdout.decode())


def assert_logits(finished: Finished, images: torch.Tensor, told: str) -> None:
    """What was printed is what the exported network answers in torch."""
    with torch.no_grad():
        expected = load_pruned(finished.folder)(images).numpy()[0]
    logits = np.array(told.split(), dtype=float)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_description_says_what_a_user_needs(finished: Finished) -> None:
    description = read_description(finished.folder)
    assert description["structure"] == {"widths": WIDTHS}
    assert description["input"]["shape"] == [1, 1, 16, 16]
    assert len(description["class_names"]) == 10
