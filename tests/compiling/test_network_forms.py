"""What the compiler makes of a network before any tuning: the same values, in better forms."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torchvision
import tuning_world
import tvm
from torch import Tensor, nn
from tvm import relax
from tvm.target import Target

from schemas.table import Program
from schemas.work import TuneWork
from workers.compiling.network import RelaxNetwork, relax_network
from workers.compiling.programs import program_id, trace_text
from workers.compiling.tasks import build_table
from workers.compiling.winograd import (
    ALL_DIRECT,
    DATA,
    OUTPUT,
    Forms,
    Shape,
    tile_edge,
    winograd_forms,
)
from workers.pruning.fold import exported_program, fold_batch_norm
from workers.tuning.bundle import Bundle
from workers.tuning.worker import TuningWorker

TARGET = Target({"kind": "llvm", "num-cores": 2})


class Convolutions(nn.Module):
    """Two convolutions of 3x3 with relu and a sum behind them, and one that is not of 3x3."""

    def __init__(self, into: int, out: int, padding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, padding=padding)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.last = nn.Conv2d(out, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = torch.relu(self.first(image))
        return self.last(torch.relu(self.second(first) + first))


def imported(network: nn.Module, image: Tensor, forms: Forms | None = None) -> RelaxNetwork:
    program = exported_program(fold_batch_norm(network.eval(), image), image)
    return relax_network(program, TARGET, winograd_forms(program) if forms is None else forms)


def computed(found: RelaxNetwork, network: nn.Module, image: Tensor) -> np.ndarray:
    """The untuned network's output, computed by TVM in this process."""
    folded = fold_batch_norm(network.eval(), image)
    weights = {f"p_{n.replace('.', '_')}": t.detach() for n, t in folded.named_parameters()}
    built = tvm.compile(found.module, target=TARGET)
    machine = relax.VirtualMachine(built, tvm.cpu())
    arguments = [image, *(weights[name] for name in found.parameters)]
    outputs = machine["main"](*(tvm.runtime.tensor(tensor.numpy()) for tensor in arguments))
    return outputs[0].numpy()


@pytest.mark.parametrize("edge", [2, 4])
@pytest.mark.parametrize(
    ("batch", "into", "out", "size", "padding"),
    [(1, 8, 16, (8, 8), 1), (1, 3, 7, (7, 10), 0), (2, 5, 9, (5, 6), 1), (1, 4, 4, (9, 4), 2)],
)
def test_convolutions_by_tiles_compute_what_torch_does(
    edge: int, batch: int, into: int, out: int, size: tuple[int, int], padding: int
) -> None:
    torch.manual_seed(0)
    network, image = Convolutions(into, out, padding), torch.randn(batch, into, *size)
    forms = {"p_first_weight": edge, "p_second_weight": edge}
    found = imported(network, image, forms)
    names = [site.function for site in found.sites]
    assert sum(name.startswith(DATA) for name in names) == 2
    with torch.inference_mode():
        expected = network(image).numpy()
    assert np.abs(computed(found, network, image) - expected).max() < 1e-5


def test_what_follows_a_convolution_is_fused_into_its_transform_back() -> None:
    network = Convolutions(8, 16, 1)
    found = imported(network, torch.zeros(1, 8, 8, 8), {"p_second_weight": 4})
    (back,) = [site for site in found.sites if OUTPUT in site.function]
    assert "add" in back.function and "relu" in back.function
    product = next(site for site in found.sites if site.module == "second")
    assert product.parameters == ("p_second_weight",)


@pytest.mark.parametrize(
    ("shape", "edge"),
    [
        (Shape(1, 56, 56, 64, 64), 4),
        (Shape(1, 32, 32, 3, 64), None),  # three channels are not worth transforming
        (Shape(1, 8, 8, 256, 256), 2),  # larger tiles have more weights to move
        (Shape(1, 4, 4, 512, 512), None),
        (Shape(1, 16, 16, 32, 32), None),  # a call more costs as much as it saves
    ],
)
def test_tiles_are_used_where_what_they_save_outweighs_what_they_move(
    shape: Shape, edge: int | None
) -> None:
    assert tile_edge(shape) == edge


def test_only_plain_convolutions_of_3x3_and_stride_1_are_computed_by_tiles() -> None:
    layers = {
        "plain": nn.Conv2d(64, 64, 3, padding=1),
        "strided": nn.Conv2d(64, 64, 3, padding=1, stride=2),
        "dilated": nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        "grouped": nn.Conv2d(64, 64, 3, padding=1, groups=2),
        "larger": nn.Conv2d(64, 64, 5, padding=2),
    }
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    assert winograd_forms(exported_program(network, torch.zeros(1, 64, 32, 32))) == {
        "p_plain_weight": 4
    }


def test_a_layer_that_is_used_at_two_sizes_is_computed_one_way() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.conv(torch.max_pool2d(self.conv(image), 16))

    assert winograd_forms(exported_program(Twice(), torch.zeros(1, 64, 32, 32))) == {}


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "resnet18"])
def test_no_transpose_is_left_between_convolutions(name: str) -> None:
    network = getattr(torchvision.models, name)(num_classes=4)
    image = torch.zeros(1, 3, 32, 32)
    names = [site.function for site in imported(network, image).sites]
    convolutions = [position for position, each in enumerate(names) if "conv2d" in each]
    between = names[convolutions[0] : convolutions[-1]]
    assert [each for each in between if "transpose" in each] == []


def test_a_pooling_that_only_repeats_a_pixel_is_folded_into_the_layer_behind_it() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.linear = nn.AdaptiveAvgPool2d(3), nn.Linear(8 * 9, 5)

        def forward(self, image: Tensor) -> Tensor:
            return self.linear(torch.flatten(self.pool(image), 1))

    torch.manual_seed(0)
    network = Classifier()
    for size, reduction in ((1, 8), (3, 72)):
        image = torch.randn(1, 8, size, size)
        found = imported(network, image)
        table = build_table(found, TARGET)
        (task_id,) = [s.task_id for s in table.network.subgraphs if s.module == "linear"]
        axes = table.workloads[task_id].axes
        assert axes.reduction is not None and axes.extents[axes.reduction] == reduction
        with torch.inference_mode():
            expected = network(image).numpy()
        assert np.abs(computed(found, network, image) - expected).max() < 1e-5


class Activations(nn.Module):
    """PReLUs behind convolutions, and batch norms where none can be folded into a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bent = nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8)
        self.second, self.bent_alike = nn.Conv2d(8, 12, 3, padding=1), nn.PReLU()
        self.hidden, self.norm = nn.Linear(12, 10), nn.BatchNorm1d(10)
        self.input_norm = nn.BatchNorm1d(12)
        self.last = nn.Linear(10, 4)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.bent_alike(self.second(self.bent(self.first(image))))
        features = self.input_norm(maps.mean((2, 3)))
        return self.last(self.norm(torch.relu(self.hidden(features))))


def test_weights_of_activations_and_norms_are_not_taken_for_those_of_layers() -> None:
    torch.manual_seed(0)
    network, image = Activations(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for norm in (network.norm, network.input_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.normal_()
        network.bent.weight.uniform_(0.1, 0.5)
    found = imported(network, image)
    modules = [site.module for site in found.sites]
    for layer in ("first", "second", "hidden", "last"):
        assert modules.count(layer) == 1
    with torch.inference_mode():
        expected = network(image).numpy()
    assert np.abs(computed(found, network, image) - expected).max() < 1e-5


def test_the_parts_of_a_split_are_call_sites_of_their_own() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Conv2d(3, 12, 1), nn.Conv2d(5, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            halves = self.before(image).chunk(2, dim=1)
            small, large = halves[1].split([1, 5], dim=1)
            return torch.relu(self.after(large)) + small * halves[0][:, :1]

    torch.manual_seed(0)
    network, image = Parts(), torch.randn(1, 3, 6, 6)
    found = imported(network, image)
    build_table(found, TARGET)
    with torch.inference_mode():
        expected = network(image).numpy()
    assert np.abs(computed(found, network, image) - expected).max() < 1e-5


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuningWorker]:
    started = tuning_world.worker(tmp_path_factory.mktemp("run"), tuning_world.Table())
    yield started
    started.close()


def bundle_of(worker: TuningWorker, widths: tuple[int, int]) -> Bundle:
    torch.manual_seed(0)
    program = exported_program(Convolutions(*widths, 1).eval(), torch.zeros(1, widths[0], 8, 8))
    target = worker._tuner.space.target
    forms = {"p_first_weight": 4, "p_second_weight": 2}
    found = relax_network(program, target, forms)
    table = build_table(found, target)
    return Bundle(found, table.network, table.workloads)


def test_programs_by_tiles_are_tuned_and_transplanted_to_other_widths(
    worker: TuningWorker,
) -> None:
    dense = bundle_of(worker, (16, 32))
    worker._tuner.tune_bundle(TuneWork(target="host", network=None, trials_per_task=3), dense)
    stored = worker._tuner.stored(dense)
    for task_id in dense.task_ids:
        assert any(p.max_abs_error is not None for p in stored[task_id]), dense.workloads[task_id]
    chosen = random.Random(0)
    for widths in ((16, 24), (12, 32), (10, 21)):
        narrow = bundle_of(worker, widths)
        assert len(narrow.relax.sites) == len(dense.relax.sites)
        suspects = []
        for site, before in zip(narrow.table.subgraphs, dense.table.subgraphs, strict=True):
            workload = narrow.workloads[site.task_id]
            parent = chosen.choice([p for p in stored[before.task_id] if p.measurement])
            space = worker._tuner.space
            found = space.transplant(workload.module, workload.axes, parent.trace, 2)
            if DATA in workload.task.name or OUTPUT in workload.task.name:
                assert found, f"{workload.task.name} at {widths}: no transplant"
            suspects += [(workload, _transplanted(workload, trace_text(one))) for one in found]
        assert [p.error for p in worker._trials.check(suspects)] == [""] * len(suspects)


def _transplanted(workload: object, trace: str) -> Program:
    task_id = workload.task.task_id  # type: ignore[attr-defined]
    return Program(
        program_id=program_id(task_id, trace),
        task_id=task_id,
        device_model="host",
        trace=trace,
        source="transplant",
        measurement=None,
    )


def test_all_direct_is_every_convolution_as_it_is() -> None:
    found = imported(Convolutions(8, 16, 1), torch.zeros(1, 8, 8, 8), ALL_DIRECT)
    assert not any(DATA in site.function for site in found.sites)
