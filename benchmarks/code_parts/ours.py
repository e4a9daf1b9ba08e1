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
from tvm.ir import save_json
from workbench import TARGET, Workbench, workbench

from device_agents.host_facts import last_level_cache_bytes
from orchestrator.store.records import conditions_of
from orchestrator.store.sharing import Sharing, SharingLedger
from schemas.config import MeasureConfig, TuneConfig
from schemas.work import Tuned, TuneWork
from workers.measuring.gauge import Gauge
from workers.pruning.fold import fold_batch_norm
from workers.tuning.bundle import Bundle
from workers.tuning.libraries import in_model
from workers.tuning.stored import fastest

_BUILD_TIMEOUT_S = 900.0
_ALL_RECORDS_BYTES = 1e9
_TOLERANCE = 1e-3


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
) -> Iterator[Compiled]:
    """Tune with what the record store has and the trials still missing; build; watch once.

    Raises ``SystemExit`` when the library's output differs from torch's.
    """
    measure = MeasureConfig(model_repeats=5, model_min_repeat_ms=100)
    sharing = Sharing(records, _ALL_RECORDS_BYTES, conditions_of(measure), takes=True)
    table = SharingLedger(folder / "ledger.sqlite", sharing)
    weight_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    cold = weight_bytes > (last_level_cache_bytes() or 0)
    with workbench(table, folder, tune, measure, threads=threads, cold=cold) as bench:
        bundle = bench.bundle(network, image)
        work = TuneWork(target=TARGET, network=None, trials_per_task=tune.trials_per_task)
        tuned = bench.tuner.tune_bundle(work, bundle)
        path = _built(bench, bundle, network, image)
        gauge = bench.device.gauge
        _check_output(gauge, path, network, image)
        watched = gauge.attribute("watch", path, tuple(image.shape))
        if watched is not None:
            tuned = in_model(tuned, [site.function for site in bundle.relax.sites], watched)
        yield Compiled(gauge, path, tuple(image.shape), tuned, _gmacs(network, image))
    table.close()


def _built(bench: Workbench, bundle: Bundle, network: nn.Module, image: Tensor) -> Path:
    stored = bench.tuner.stored(bundle)
    programs = [
        (str(save_json(bundle.workloads[task_id].module)), best.trace)
        for task_id in bundle.task_ids
        if (best := fastest(stored[task_id])) is not None
    ]
    folded = fold_batch_norm(network, image)
    weights = {
        f"p_{name.replace('.', '_')}": tensor.detach().numpy()
        for name, tensor in folded.named_parameters()
    }
    path = bench.folder / "network.so"
    library = bench.builder.build_network(
        str(save_json(bundle.relax.module)),
        programs,
        {name: weights[name] for name in bundle.relax.parameters},
        path,
        _BUILD_TIMEOUT_S,
    )
    if library.error:
        raise SystemExit(f"the network did not build: {library.error}")
    return path


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
