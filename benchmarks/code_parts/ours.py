"""Our side: the network tuned, built as a run builds it, and watched on the device."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from workbench import TARGET, workbench

from device_agents.host_facts import last_level_cache_bytes
from orchestrator.store.records import conditions_of
from orchestrator.store.sharing import Sharing, SharingLedger
from schemas.config import MeasureConfig, PruneConfig, RunConfig, TuneConfig
from schemas.network import NetworkInfo, Structure, Trained
from schemas.work import Tuned, TuneWork
from workers.measuring.gauge import Gauge
from workers.pruning.fold import fold_batch_norm
from workers.tuning.bundle import Bundle
from workers.tuning.libraries import NetworkLibraries

_ALL_RECORDS_BYTES = 1e9
_TOLERANCE = 1e-3
_MEASURE = MeasureConfig(model_repeats=5, model_max_repeats=5, model_min_repeat_ms=100)


@dataclass(frozen=True)
class Compiled:
    """A tuned network's library, and what is known of its programs."""

    gauge: Gauge
    path: Path
    input_shape: tuple[int, ...]
    tuned: Tuned
    gmacs: float

    def median_ms(self) -> float:
        """Median of the whole network's inferences on the device."""
        found = self.gauge.compare("time", self.path, self.path, self.input_shape)
        return statistics.median([*found.reference_ms, *found.candidate_ms])


@contextmanager
def compiled(
    network: nn.Module,
    image: Tensor,
    tune: TuneConfig,
    *,
    threads: int,
    records: Path,
    folder: Path,
    measure: MeasureConfig = _MEASURE,
) -> Iterator[Compiled]:
    """Tune with what the record store has and the trials still missing; build; watch once.

    Raises ``SystemExit`` when the library's output differs from torch's.
    """
    sharing = Sharing(records, _ALL_RECORDS_BYTES, conditions_of(measure), takes=True)
    table = SharingLedger(folder / "ledger.sqlite", sharing)
    weight_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    cold = weight_bytes > (last_level_cache_bytes() or 0)
    with workbench(table, folder, tune, measure, threads=threads, cold=cold) as bench:
        bundle = bench.bundle(network, image)
        work = TuneWork(target=TARGET, network=None, trials_per_task=tune.trials_per_task)
        tuned = bench.tuner.tune_bundle(work, bundle)
        run = RunConfig(prune=PruneConfig(max_accuracy_drop=1.0), tune=tune)
        gauge = bench.device.gauge
        libraries = NetworkLibraries(
            _OneNetwork(bundle, network, image),  # type: ignore[arg-type]
            bench.tuner,
            bench.builder,
            gauge,
            run,
            folder,
        )
        info = NetworkInfo(macs=0, params=0, input_shape=tuple(image.shape))
        trained = Trained(
            structure=Structure(), weights="", val_accuracy=0.0, info=info, train_s=0.0, epochs=0
        )
        tuned = libraries.chosen_inside(tuned, trained, "bench")
        path, _ = libraries.build(trained)
        _check_output(gauge, path, network, image)
        yield Compiled(gauge, path, tuple(image.shape), tuned, _gmacs(network, image))
    table.close()


class _OneNetwork:
    """Stands for a run's networks: the one that was handed over."""

    def __init__(self, bundle: Bundle, network: nn.Module, image: Tensor) -> None:
        self._bundle = bundle
        self._folded = fold_batch_norm(network, image)

    def of_structure(self, _structure: Structure, _fraction: float | None = None) -> Bundle:
        return self._bundle

    def weights(self, _trained: Trained, _fraction: float | None = None) -> dict[str, np.ndarray]:
        tensors = dict(self._folded.named_parameters())
        names = self._bundle.relax.tensors
        return {name: tensors[source].detach().numpy() for name, source in names.items()}


def _check_output(gauge: Gauge, path: Path, network: nn.Module, image: Tensor) -> None:
    with torch.inference_mode():
        expected = network(image).numpy()
    found = gauge.run("check", path, image.numpy(), 1)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f"  largest difference from torch: {error:.1e} of the largest output", flush=True)
    if not error <= _TOLERANCE:
        raise SystemExit("the compiled network computes something else than torch")


def _gmacs(network: nn.Module, image: Tensor) -> float:
    """Multiply-accumulates of convolutions and linear layers as torch computes them, in 1e9."""
    counted = 0

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal counted
        counted += output.numel() * layer.weight[0].numel()  # type: ignore[union-attr]

    hooks = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    return counted / 1e9
