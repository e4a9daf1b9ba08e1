"""Every common convolutional network, from its channel groups to a narrower library on a device.

Of each network: the table is exact; its channel groups are of the kinds it is known for; what
cannot be pruned is left out by name, with the reason; one group of each kind has
structure-preserving widths, and the network that is cut in all of those groups at once, and is
without one of its blocks where it has such, is transplanted, compiled, run on this
machine's device, and computes what torch computes.

*Share.* A convolution is held by a group that can be pruned where the group's cut makes it smaller:
it writes the group's channels or reads them. At least 80 % of a network's multiply-accumulates in
convolutions are to be in such convolutions. Counted more strictly, by those that write the channels
alone, 80 % hold too, but for networks that shuffle channels: of their units the first two of three
convolutions are cut in what they write, and the last one in what it reads. Both are printed.

Two trials are had for each task of the chosen groups, and none for the others: those run as the
compiler leaves them. ``benchmarks/networks.py`` has larger images and more trials.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tuning_world
import tvm_ffi
from layers import Layer, kinds_of, layers_of, one_of_each, share
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tuning_world import TARGET, Table

from orchestrator.widths import group_widths, least_width
from schemas.network import ChannelGroup, Structure, Trained
from schemas.work import Candidate, ScreenWork, Tuned
from workers.artifacts import ArtifactStore
from workers.networks import Networks
from workers.pruning.surgery import prune_to
from workers.tuning.bundle import Bundle, Bundles
from workers.tuning.libraries import NetworkLibraries
from workers.tuning.screening import Screener
from workers.tuning.tuner import Tuner
from workers.tuning.worker import TuningWorker

SIZE = int(os.environ.get("CPRUNE_NETWORKS_SIZE", "64"))
TRIALS = int(os.environ.get("CPRUNE_NETWORKS_TRIALS", "2"))
CLASSES = 10
LEAST_SHARE, TOLERANCE = 0.8, 1e-3
REGROUPED = "its channels are regrouped"
BOTTLENECK = {"plain", "residual", "depthwise"}
NETWORKS: dict[str, set[str]] = {
    "resnet18": {"plain", "residual"},
    "resnet34": {"plain", "residual"},
    "resnet50": {"plain", "residual"},
    "vgg16_bn": {"plain"},
    "mobilenet_v2": BOTTLENECK,
    "mobilenet_v3_large": {*BOTTLENECK, "squeeze-excite"},
    "mnasnet1_0": BOTTLENECK,
    "efficientnet_b0": {*BOTTLENECK, "squeeze-excite"},
    "densenet121": {"plain", "concat"},
    "googlenet": {"plain", "concat"},
    "squeezenet1_1": {"plain", "concat"},
    "shufflenet_v2_x1_0": {"plain", "depthwise"},
    "regnet_y_400mf": {"plain", "residual", "grouped", "squeeze-excite"},
    "convnext_tiny": BOTTLENECK,
}

WITH_BLOCKS = {
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mnasnet1_0",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
}
"""Those with residual blocks that have channels of their own, or with plain layers."""


def pictures() -> tuple[TensorDataset, ...]:
    """Three splits of noise, one image of each class."""
    images = torch.randn(3, CLASSES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return tuple(TensorDataset(split, torch.arange(CLASSES)) for split in images)


@dataclass(frozen=True)
class Room:
    """What carries out a run's units of work, for one network, on the module's one device."""

    networks: Networks
    bundles: Bundles
    tuner: Tuner
    screener: Screener
    libraries: NetworkLibraries


def room(worker: TuningWorker, table: Table, name: str, folder: Path) -> Room:
    changes = {"model_build_timeout_s": 900.0, "transplant_variants": 2}
    tune = tuning_world.config().tune.model_copy(update=changes)
    config = tuning_world.config(
        model={"name": f"torchvision:{name}"},
        data={"name": f"{__name__}:pictures", "image_size": SIZE},
        tune=tune,
    )
    networks = Networks(config, ArtifactStore(str(folder)))
    space, trials, gauge = worker._tuner.space, worker._trials, worker._device.gauge
    bundles = Bundles(networks, space.target)
    tuner = Tuner(
        bundles, space, worker._searchers, trials, gauge, table, config.tune, 0, worker._working
    )
    screener = Screener(bundles, space, tuner, trials, gauge, config.tune, worker._working)
    libraries = NetworkLibraries(bundles, tuner, worker._builder, gauge, config, folder)
    return Room(networks, bundles, tuner, screener, libraries)


@pytest.fixture(scope="module")
def worker(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuningWorker]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other where the cores are busy
    measure = tuning_world.config().measure.model_copy(update={"answer_timeout_s": 60.0})
    started = tuning_world.worker(tmp_path_factory.mktemp("run"), table, measure=measure)
    yield started
    started.close()
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_pruned_and_computes_the_same(
    name: str, worker: TuningWorker, table: Table, tmp_path: Path
) -> None:
    began = time.monotonic()
    own = room(worker, table, name, tmp_path)
    network, image = lively(own.networks.dense(), own.networks.splits.train), own.networks.image
    layers, groups = layers_of(network, image), own.networks.groups
    kinds = {group.group_id: kinds_of(group, layers) for group in groups}
    chosen = one_of_each(groups, kinds)
    assert set().union(*(kinds[group.group_id] for group in chosen)) == NETWORKS[name]
    shares = shares_of(groups, layers)

    dense = own.bundles.dense
    check_table(dense, layers)
    tuned = tuned_for(own, dense, chosen)
    cut = {group.group_id: half_width(group, tuned) for group in chosen}
    cut |= dict.fromkeys(a_block_beside(cut, own), 0)
    assert (0 in cut.values()) == (name in WITH_BLOCKS)
    shorter = prune_to(network, image, groups, cut, blocks=own.networks.blocks)
    narrow = trained(own, shorter, cut)
    check_transplants(own, narrow, cut, chosen)
    error = error_on_device(own, worker, narrow)
    print(line(name, groups, kinds, shares, cut, error, time.monotonic() - began))
    assert error <= TOLERANCE


def lively(network: nn.Module, images: TensorDataset) -> nn.Module:
    """Every layer of a network that was not trained gives values around 1: none is silent.

    Scales and biases are drawn, and batch norms take their statistics from some images.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if max(parameter.shape) == parameter.numel():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(torch.stack([images[index][0] for index in range(CLASSES)]))
    return network.eval()


def shares_of(groups: tuple[ChannelGroup, ...], layers: dict[str, Layer]) -> tuple[float, float]:
    """Shares of the convolutions' work: that write channels of prunable groups, and that touch
    them. What is left out has a reason; where channels are shuffled the second one counts."""
    prunable = [group for group in groups if group.prunable]
    writing = {name for group in prunable for name in group.producers}
    touching = writing | {name for group in prunable for name in group.consumers}
    left_out = [group for group in groups if not group.prunable]
    assert left_out and all(group.reason for group in left_out)
    strict, held = share(writing, layers), share(touching, layers)
    shuffles = any(group.reason.startswith(REGROUPED) for group in left_out)
    assert (held if shuffles else strict) >= LEAST_SHARE
    return strict, held


def check_table(dense: Bundle, layers: dict[str, Layer]) -> None:
    """Each layer is behind one call site that knows its widths; tasks are classes of equality."""
    sites = {s.module: s for s in dense.table.subgraphs if s.module in layers}
    assert Counter(s.module for s in dense.table.subgraphs if s.module in layers) == Counter(
        list(layers)
    )
    for name, layer in layers.items():
        axes = dense.workloads[sites[name].task_id].axes
        assert dense.relax.tensors[str(sites[name].parameter)] == f"{name}.weight"
        assert axes.output is not None and axes.reduction is not None
        extents = (axes.extents[axes.output], axes.extents[axes.reduction])
        assert extents == tuple(layer.module.weight.shape[:2])
    for one, other in itertools.combinations(dense.workloads.values(), 2):
        assert not tvm_ffi.structural_equal(one.module["main"], other.module["main"])


def tuned_for(own: Room, dense: Bundle, chosen: list[ChannelGroup]) -> Tuned:
    modules = [name for group in chosen for name in (*group.producers, *group.consumers)]
    work = tuning_world.tune_work(TRIALS, *modules)
    return own.tuner.tune_bundle(work, dense)


def half_width(group: ChannelGroup, tuned: Tuned) -> int:
    """The structure-preserving width nearest to a half."""
    found = group_widths(group, group.channels, tuned, least_width(group.channels, 0.1))
    assert found.widths, f"{group.group_id}: {found.reason}"
    return min(found.widths, key=lambda width: abs(2 * width - group.channels))


def a_block_beside(cut: dict[str, int], own: Room) -> tuple[str, ...]:
    """The groups of a block of which none is cut; none where there is no such block."""
    found = (block.groups for block in own.networks.blocks)
    return next((groups for groups in found if not cut.keys() & set(groups)), ())


def trained(own: Room, network: nn.Module, widths: dict[str, int]) -> Trained:
    """A network as the ledger knows it."""
    return Trained(
        structure=Structure(widths=widths),
        weights=own.networks.store(network),
        val_accuracy=0.0,
        info=own.networks.info(network),
        train_s=0.0,
        epochs=0,
    )


def check_transplants(
    own: Room, narrow: Trained, cut: dict[str, int], chosen: list[ChannelGroup]
) -> None:
    """Each task behind the cut layers has a program taken from the dense network's.

    Except where it is one of the dense network's own: those have what the tuning gave them.
    """
    candidate = Candidate(
        candidate_id="narrow",
        task_id="",
        task_name="",
        parent=tuning_world.network(),
        structure=narrow.structure,
        groups=tuple(cut),
        widths_before=tuple(
            g.channels for name in cut for g in own.networks.groups if g.group_id == name
        ),
        widths_after=tuple(cut.values()),
    )
    own.screener.screen([ScreenWork(target=TARGET, candidate=candidate)])
    bundle = own.bundles.of_structure(narrow.structure)
    touched = {name for group in chosen for name in (*group.producers, *group.consumers)}
    stored = own.tuner.stored(bundle)
    for site in bundle.table.subgraphs:
        if site.module in touched and site.task_id not in own.bundles.dense.workloads:
            ran = [program for program in stored[site.task_id] if program.measurement is not None]
            assert ran, f"no program of {site.module}"


def error_on_device(own: Room, worker: TuningWorker, narrow: Trained) -> float:
    """Largest difference of the library's outputs from torch's, as a share of the largest."""
    images = torch.stack([own.networks.splits.test[index][0] for index in range(2)])
    library, key = own.libraries.build(narrow)
    found = worker._device.gauge.run(f"run:{key}", library, images.numpy(), 1)
    loaded = own.networks.load(narrow)
    with torch.inference_mode():
        expected: Tensor = loaded(images)
    stored = own.tuner.stored(own.bundles.of_structure(narrow.structure)).values()
    assert not any(program.is_condemned for programs in stored for program in programs)
    return float(np.abs(found - expected.numpy()).max() / np.abs(expected.numpy()).max())


def line(
    name: str,
    groups: tuple[ChannelGroup, ...],
    kinds: dict[str, frozenset[str]],
    shares: tuple[float, float],
    cut: dict[str, int],
    error: float,
    seconds: float,
) -> str:
    """What was found of a network, as a row of the table in docs/networks.md."""
    strict, held = shares
    found = {kind for group in groups if group.prunable for kind in kinds[group.group_id]}
    left_out: dict[str, list[str]] = {}
    for group in groups:
        if not group.prunable:
            left_out.setdefault(group.reason, []).append(group.group_id)
    reasons = "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}"
        for reason, names in left_out.items()
    )
    prunable = sum(group.prunable for group in groups)
    widths = ", ".join(f"{group} {width}" for group, width in cut.items())
    return (
        f"\n| {name} | {prunable} of {len(groups)} | {', '.join(sorted(found))} | {strict:.1%} | "
        f"{held:.1%} | {widths} | {error:.0e} | {reasons} | {seconds:.0f} s |"
    )
