"""The end of a run: the final network's artefacts, measured, checked, judged on the test split."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tvm.s_tir import meta_schedule as ms

from schemas.network import Trained
from schemas.table import Measurement
from schemas.target import TargetConfig
from schemas.work import Exported, ExportedNetwork, ExportWork, Tuned
from workers.export.loading import load_pruned
from workers.export.torch_exports import write_torch_exports
from workers.measuring.gauge import Gauge
from workers.measuring.occasions import compare_often, ratios_of, together
from workers.networks import Networks
from workers.training.images import batches
from workers.training.metrics import evaluate
from workers.tuning.bundle import Bundles
from workers.tuning.libraries import NetworkLibraries
from workers.tuning.stored import fastest
from workers.tuning.tuner import Tuner
from workers.whole_files import copy_whole

LIBRARY = "model.so"
TUNING = "tuning"
_CHECKED_IMAGES = 32
_LARGEST_DIFFERENCE = 1e-3  # of the largest output
_MANY_CLASSES = 20  # with fewer, the class is nearly always among five


class WrongLibrary(RuntimeError):
    """The compiled network computes something else than torch."""


class Exporter:
    """Writes ``RUN_DIR/export/TARGET`` and takes the run's last figures."""

    def __init__(
        self,
        run_dir: Path,
        target: TargetConfig,
        networks: Networks,
        bundles: Bundles,
        tuner: Tuner,
        libraries: NetworkLibraries,
        gauge: Gauge,
        *,
        threads: int,
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """``threads`` judge networks on the test split, inside of ``working``."""
        self._threads = threads
        self._working = working
        self._run_dir = run_dir
        self._folder = run_dir / "export" / target.name
        self._networks = networks
        self._bundles = bundles
        self._tuner = tuner
        self._libraries = libraries
        self._gauge = gauge

    def export(self, work: ExportWork) -> Exported:
        """Carry out ``work``. The test split is read here and nowhere else.

        Raises ``WrongLibrary`` where the final network's library differs from torch by more than a
        thousandth of the largest output; the library is then not left in the folder.
        """
        device_s = self._gauge.device_s
        dense_library, dense_key = self._libraries.build(work.dense)
        final_library, final_key = self._libraries.build(work.final)
        shape = work.final.info.input_shape
        compared = compare_often(
            self._gauge, f"export:{dense_key}:{final_key}", dense_library, final_library, shape
        )
        dense_latency = together([comparison.reference for comparison in compared])
        final_latency = together([comparison.candidate for comparison in compared])
        uniform = self._uniform(work, dense_library, dense_key)
        artifacts, notes = self._write(work.final, final_library, final_latency.threads)
        deployed = load_pruned(self._folder)
        difference, largest, images = self._check(deployed, final_library, final_key)
        self._gauge.release()
        if not difference <= _LARGEST_DIFFERENCE * largest:
            (self._folder / LIBRARY).unlink()
            raise WrongLibrary(
                f"the compiled network's outputs differ from torch's by up to {difference:.3g} on "
                f"{images} test images, where the largest is {largest:.3g}: it is not exported"
            )
        return Exported(
            dense=self._judged(work.dense, self._networks.load(work.dense), dense_latency),
            final=self._judged(work.final, deployed, final_latency),
            uniform=uniform,
            dense_tuned=self._tuned(work.dense),
            final_tuned=self._tuned(work.final),
            speedup_ratios=ratios_of(compared),
            max_abs_difference=difference,
            max_abs_output=largest,
            checked_images=images,
            test_images=len(self._networks.splits.test),
            artifacts=artifacts,
            notes=notes,
            device_s=self._gauge.device_s - device_s,
        )

    def _uniform(
        self, work: ExportWork, dense_library: Path, dense_key: str
    ) -> ExportedNetwork | None:
        if work.uniform is None:
            return None
        library, key = self._libraries.build(work.uniform, work.fraction)
        compared = compare_often(
            self._gauge,
            f"export:{dense_key}:{key}",
            dense_library,
            library,
            work.uniform.info.input_shape,
        )
        latency = together([comparison.candidate for comparison in compared])
        model = self._networks.load(work.uniform, work.fraction)
        return self._judged(work.uniform, model, latency)

    def _judged(self, trained: Trained, model: nn.Module, latency: Measurement) -> ExportedNetwork:
        test, metric = self._networks.splits.test, self._networks.config.metric
        has_many = len(self._networks.splits.class_names) >= _MANY_CLASSES
        metrics = [metric, "top5"] if has_many else [metric]
        accuracy, *top5 = evaluate(
            model, test, metrics, threads=self._threads, yield_cores=self._working
        )
        return ExportedNetwork(
            latency=latency,
            val_accuracy=trained.val_accuracy,
            test_accuracy=accuracy,
            test_top5=top5[0] if top5 else None,
            info=trained.info,
        )

    def _tuned(self, trained: Trained) -> Tuned:
        """What the programs take that the network's library was built from."""
        bundle = self._bundles.of_structure(trained.structure)
        tuned = self._tuner.summary(bundle, measured=0, failed=0, device_s=0.0, wall_s=0.0)
        return self._libraries.attributed(tuned, trained, "export")

    def _write(
        self, final: Trained, library: Path, threads: int
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        """Write every artefact; paths relative to the run folder, and notes on what is left out."""
        splits, config = self._networks.splits, self._networks.config
        copy_whole(library, self._folder / LIBRARY)
        written = write_torch_exports(
            self._folder,
            self._networks.load(final),
            structure=final.structure,
            config=config.model,
            class_names=splits.class_names,
            preprocessing=splits.preprocessing,
            batch_size=config.input.batch_size,
            library={
                "file": LIBRARY,
                "threads": threads,
                "runtime": {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi")},
            },
        )
        self._write_records(final, self._folder / TUNING)
        names = {
            "weights": written.weights,
            "structure": written.structure,
            "exported_program": written.program,
            **({"onnx": written.onnx} if written.onnx else {}),
            "library": LIBRARY,
            "tuning_workloads": f"{TUNING}/database_workload.json",
            "tuning_records": f"{TUNING}/database_tuning_record.json",
        }
        root = self._folder.relative_to(self._run_dir)
        artifacts = {what: str(root / name) for what, name in names.items()}
        return artifacts, (written.note,) if written.note else ()

    def _write_records(self, final: Trained, folder: Path) -> None:
        """The fastest program of each task, as a database that MetaSchedule opens."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        database = ms.database.JSONDatabase(work_dir=str(folder))
        bundle = self._bundles.of_structure(final.structure)
        for task_id, programs in self._tuner.stored(bundle).items():
            best = fastest(programs)
            if best is None or best.measurement is None:
                continue
            module = bundle.workloads[task_id].module
            database.commit_tuning_record(
                ms.database.TuningRecord(
                    self._tuner.space.replay(module, best.trace).trace,
                    database.commit_workload(module),
                    [milliseconds / 1000 for milliseconds in best.measurement.run_ms],
                    self._tuner.space.target,
                    [],
                )
            )

    def _check(self, model: nn.Module, library: Path, key: str) -> tuple[float, float, int]:
        """Largest difference of the library's logits on the device from torch's, on test images."""
        batch_size = self._networks.config.input.batch_size
        test = self._networks.splits.test
        count = max(1, min(_CHECKED_IMAGES, len(test)) // batch_size) * batch_size
        order = torch.arange(count) % len(test)
        images = next(batches(test, count, order))[0]
        with torch.no_grad():
            expected = torch.cat([model(part) for part in torch.split(images, batch_size)]).numpy()
        logits = self._gauge.run(f"run:{key}", library, images.numpy(), batch_size)
        return float(np.abs(logits - expected).max()), float(np.abs(expected).max()), count
