"""The table against TVM's structural equality, and what happens when the two disagree."""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import tvm_ffi
from torch import nn
from tvm.target import Target

from schemas.config import ModelConfig
from workers.compiling import tasks
from workers.compiling.network import RelaxNetwork, relax_network
from workers.compiling.spaces import block_names
from workers.compiling.tasks import TaskTable, build_table
from workers.errors import UserError
from workers.pruning.fold import exported_program, fold_batch_norm
from workers.training.networks import build_model

ROOT = Path(__file__).parents[2]
TARGET = {"kind": "llvm", "num-cores": 2}
NETWORKS = {"small_resnet": 1, "torchvision:resnet18": 3}


@dataclass(frozen=True)
class Imported:
    model: nn.Module
    relax: RelaxNetwork
    table: TaskTable

    def task_of(self, module: str) -> str:
        (found,) = [s.task_id for s in self.table.network.subgraphs if s.module == module]
        return found


@functools.cache
def imported(name: str) -> Imported:
    channels = NETWORKS[name]
    model = build_model(ModelConfig(name=name), 10, channels, image_size=32, seed=0).eval()
    image = torch.zeros(1, channels, 32, 32)
    target = Target(TARGET)
    relax = relax_network(exported_program(fold_batch_norm(model, image), image), target)
    return Imported(model, relax, build_table(relax, target))


@pytest.fixture(scope="module")
def small() -> Imported:
    return imported("small_resnet")


@pytest.fixture(scope="module", params=list(NETWORKS))
def any_network(request: pytest.FixtureRequest, small: Imported) -> Imported:
    return small if request.param == "small_resnet" else imported(request.param)


def test_each_layer_is_behind_exactly_one_call_site(any_network: Imported) -> None:
    layers = [
        name
        for name, module in any_network.model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    subgraphs = any_network.table.network.subgraphs
    assert sorted(s.module for s in subgraphs if s.module is not None) == sorted(layers)
    for subgraph in subgraphs:
        if subgraph.module is not None:
            assert subgraph.parameter == f"p_{subgraph.module.replace('.', '_')}_weight"
    assert [subgraph.index for subgraph in subgraphs] == list(range(len(subgraphs)))


def test_tasks_are_the_classes_of_structural_equality(any_network: Imported) -> None:
    module, sites = any_network.relax.module, any_network.relax.sites
    bare = {s.function: module[s.function].without_attr("global_symbol") for s in sites}
    task_of = {
        site.function: subgraph.task_id
        for site, subgraph in zip(sites, any_network.table.network.subgraphs, strict=True)
    }
    for one, other in itertools.combinations(bare, 2):
        equal = tvm_ffi.structural_equal(bare[one], bare[other])
        assert equal == (task_of[one] == task_of[other]), (one, other)
    table = any_network.table
    assert {task.task_id for task in table.network.tasks} == set(task_of.values())
    assert set(table.workloads) == set(task_of.values())


def test_channel_axes_are_the_layers_widths(any_network: Imported) -> None:
    for subgraph in any_network.table.network.subgraphs:
        if subgraph.module is None:
            continue
        layer = any_network.model.get_submodule(subgraph.module)
        axes = any_network.table.workloads[subgraph.task_id].axes
        assert axes.output is not None and axes.reduction is not None
        out, into = layer.weight.shape[:2]
        assert (axes.extents[axes.output], axes.extents[axes.reduction]) == (out, into)
        kinds = any_network.table.workloads[subgraph.task_id].task.kind
        assert kinds == ("conv2d" if isinstance(layer, nn.Conv2d) else "dense")


def test_grouped_and_depthwise_convolutions_are_told_apart() -> None:
    layers = [
        (nn.Conv2d(4, 6, 3), "conv2d", 4),
        (nn.Conv2d(6, 6, 3, groups=6), "depthwise", 1),
        (nn.Conv2d(6, 9, 3, groups=3), "conv2d", 2),
        (nn.Conv2d(9, 18, 1, groups=9), "depthwise", 1),
    ]
    model = nn.Sequential(*(layer for layer, _, _ in layers)).eval()
    target = Target(TARGET)
    table = build_table(
        relax_network(exported_program(model, torch.zeros(1, 4, 9, 9)), target), target
    )
    tasks = {s.module: table.workloads[s.task_id] for s in table.network.subgraphs}
    for position, (layer, kind, reduced) in enumerate(layers):
        workload = tasks[str(position)]
        axes = workload.axes
        assert workload.task.kind == kind
        assert axes.output is not None and axes.extents[axes.output] == layer.out_channels
        assert axes.reduction is not None and axes.extents[axes.reduction] == reduced


def test_equal_tasks_of_different_networks_have_blocks_of_the_same_names() -> None:
    """Else a trace of one network, which finds its blocks by name, fails on the other."""
    workloads = []
    for depth in (1, 4):
        layers = [layer for _ in range(depth) for layer in (nn.Conv2d(4, 4, 3), nn.ReLU())]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 6, 1)).eval()
        image = torch.zeros(1, 4, 4 + 2 * depth, 4 + 2 * depth)  # the mean is over 4x4 in both
        table = build_table(
            relax_network(exported_program(model, image), Target(TARGET)), Target(TARGET)
        )
        (mean,) = (w for w in table.workloads.values() if "T_divide" in block_names(w.module))
        workloads.append(mean)
    one, other = workloads
    assert one.task.task_id == other.task.task_id
    assert block_names(one.module) == block_names(other.module)


def test_layers_are_known_by_their_own_names_whatever_those_are() -> None:
    names = ("block1-0", "block1_0")  # one name, where only letters and digits count
    model = nn.Sequential(OrderedDict((name, nn.Conv2d(4, 4, 3)) for name in names)).eval()
    target = Target(TARGET)
    relax = relax_network(exported_program(model, torch.zeros(1, 4, 9, 9)), target)
    subgraphs = build_table(relax, target).network.subgraphs
    layers = [subgraph for subgraph in subgraphs if subgraph.module is not None]
    assert [subgraph.module for subgraph in layers] == list(names)
    for subgraph in layers:
        assert relax.tensors[str(subgraph.parameter)] == f"{subgraph.module}.weight"


def test_equal_layers_share_a_task_and_others_do_not() -> None:
    network = imported("torchvision:resnet18")
    assert network.task_of("layer1.0.conv1") == network.task_of("layer1.1.conv1")
    assert network.task_of("layer1.0.conv2") == network.task_of("layer1.1.conv2")
    shared = network.table.network.modules(network.task_of("layer1.0.conv1"))
    assert shared == ("layer1.0.conv1", "layer1.1.conv1")
    assert network.task_of("layer1.0.conv1") != network.task_of("layer1.0.conv2")  # the sum
    assert network.task_of("layer2.0.conv1") != network.task_of("layer2.1.conv1")  # the stride


def test_task_ids_are_the_same_in_another_process(small: Imported) -> None:
    script = (
        "from test_table_exact import imported; "
        "print(*(t.task_id for t in imported('small_resnet').table.network.tasks))"
    )
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == [task.task_id for task in small.table.network.tasks]


def test_different_tasks_of_equal_text_are_refused_by_name(
    small: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tasks.canonical_text
    monkeypatch.setattr(
        tasks, "canonical_text", lambda module: re.sub(r"\d+", "0", original(module))
    )
    with pytest.raises(UserError, match=r"by structural equality, .* by their text") as caught:
        build_table(small.relax, Target(TARGET))
    assert caught.value.field == "model.name" and "\n" not in str(caught.value)
    for name in ("layer2.0.conv1", "layer3.0.conv1"):  # they differ in their shapes alone
        assert f"({name})" in caught.value.message
    assert "(fc)" not in caught.value.message


def test_equal_tasks_of_different_texts_are_refused_by_name(
    small: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, serial = tasks.canonical_text, itertools.count()
    monkeypatch.setattr(
        tasks,
        "canonical_text",
        lambda module: f"{text}{next(serial)}" if "conv2d" in (text := original(module)) else text,
    )
    with pytest.raises(UserError, match=r"\(conv1\) equals task .* but their texts differ"):
        build_table(small.relax, Target(TARGET))


def test_a_call_site_that_is_no_task_is_refused_by_name(
    small: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tasks._find_equal
    monkeypatch.setattr(
        tasks,
        "_find_equal",
        lambda modules, wanted: None if "conv2d" in wanted.script() else original(modules, wanted),
    )
    with pytest.raises(UserError, match=r"\(conv1\) is not among the compiler's tasks"):
        build_table(small.relax, Target(TARGET))
