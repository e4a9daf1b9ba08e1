"""Networks built for GPUs; where this machine has one, tuned and run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tuning_world
from torch import Tensor, nn
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from device_agents.host_facts import gpu_model, runs_on
from schemas.config import MeasureConfig
from schemas.target import TargetConfig
from workers.compiling.build import build_network, build_program, build_whole
from workers.compiling.network import relax_network
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import build_table
from workers.errors import UserError
from workers.measuring import place, setup
from workers.measuring.setup import complete_target
from workers.pruning.fold import exported_program
from workers.tuning.search import Proposal, Search

HOST = {"kind": "llvm"}
TARGETS = {
    "cuda": {"kind": "cuda", "arch": "sm_80", "host": HOST},
    "opencl": {"kind": "opencl", "host": HOST},
}
PROPOSALS = 8
"""Of so many drawn for a task, some may not build for the device: that is a search's daily life."""
DEVICE_CODE = {"cuda": b"_kernel", "opencl": b"__kernel void"}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(image)).mean((2, 3)))


def builds(proposal: Proposal, target: Target, path: Path) -> bool:
    try:
        build_program(proposal.schedule.mod, target, path)
    except Exception:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_programs_and_networks_are_built_with_code_for_the_device(
    kind: str, tmp_path: Path
) -> None:
    target = Target(complete_target(TARGETS[kind]))
    network = Network().eval().requires_grad_(False)
    relax = relax_network(exported_program(network, torch.zeros(1, 3, 16, 16)), target)
    table = build_table(relax, target)
    search = Search(ScheduleSpace(target), population_size=8, generations=1)
    programs = []
    for workload in table.workloads.values():
        model = ms.cost_model.RandomModel()
        proposals = search.propose(workload, [], PROPOSALS, 0, model)
        path = tmp_path / "program.so"
        trace = next(each.trace for each in proposals if builds(each, target, path))
        assert DEVICE_CODE[kind] in path.read_bytes(), workload.task.name
        programs.append((workload.module, trace))
        path = tmp_path / "untuned.so"
        build_whole(workload.module, target, path)
        assert DEVICE_CODE[kind] in path.read_bytes(), f"untuned {workload.task.name}"
    weights = {f"p_{n.replace('.', '_')}": t.numpy() for n, t in network.named_parameters()}
    path = tmp_path / "network.so"
    needed = {name: weights[name] for name in relax.parameters}
    build_network(relax.module, target, programs[:1], needed, path)  # the others stay untuned
    assert DEVICE_CODE[kind] in path.read_bytes()


def test_a_target_says_what_it_runs_on_and_gets_its_limits() -> None:
    assert runs_on("host") == runs_on({"kind": "llvm"}) == "cpu"
    assert runs_on({"kind": "cuda"}) == "cuda"
    given = {"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 512}
    assert complete_target(given)["max_threads_per_block"] == 512
    assert complete_target(given)["max_shared_memory_per_block"] > 0
    assert complete_target(HOST) == HOST


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tvm_target": {"kind": "cuda"}}, "nvidia-smi finds none"),
        ({"tvm_target": {"kind": "opencl"}}, "run no opencl on this machine"),
        (
            {"tvm_target": {"kind": "opencl"}, "device": "tracker", "tracker_port": 9190},
            "has to name its CPU",
        ),
    ],
)
def test_an_accelerator_that_cannot_be_reached_is_refused_at_once(
    changes: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "gpu_model", lambda: None)
    with pytest.raises(UserError, match=complaint):
        setup.open_device(TargetConfig(**changes), MeasureConfig(), tmp_path, tmp_path)


@pytest.mark.skipif(gpu_model() is None, reason="this machine has no NVIDIA GPU")
def test_a_network_is_tuned_and_run_on_a_local_gpu(tmp_path: Path) -> None:
    targets: list[dict[str, Any]] = [{"name": "host", "tvm_target": {"kind": "cuda"}}]
    table = tuning_world.Table()
    worker = tuning_world.worker(tmp_path, table, targets=targets)
    try:
        tuned = worker._tuner.tune(tuning_world.tune_work(2))
        assert all(entry.latency_ms > 0 for entry in tuned.latencies)
        checked = [p for p in table.all_programs() if p.max_abs_error is not None]
        assert {p.task_id for p in checked} == {entry.task_id for entry in tuned.latencies}
        assert np.max([p.max_abs_error for p in checked]) < 1e-3
    finally:
        worker.close()
