"""Libraries for phones and boards are linked on this machine, and ask for the device's own ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from tvm.target import Target

from workers.compiling import linking
from workers.compiling.build import build_network, build_whole
from workers.compiling.linking import NoLinker, check_linker, foreign_triple
from workers.compiling.network import relax_network
from workers.compiling.tasks import build_table
from workers.pruning.fold import exported_program

ANDROID = "aarch64-linux-android"
DEVICES = {
    ANDROID: (183, (b"libc.so", b"libm.so")),
    "armv7a-linux-androideabi": (40, (b"libc.so", b"libm.so")),
    "aarch64-linux-gnu": (183, (b"libc.so.6", b"libm.so.6")),
}
"""Triple -> the processor's number in ELF files, and what the library needs on the device."""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(torch.sigmoid(self.conv(image)).mean((2, 3)))


def machine_of(library: bytes) -> int:
    assert library[:4] == b"\x7fELF"
    (machine,) = struct.unpack("<H", library[18:20])
    return int(machine)


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", [False, True], ids=["cpu", "opencl"])
@pytest.mark.parametrize("triple", DEVICES)
def test_programs_and_networks_are_linked_for_the_device(
    triple: str, accelerator: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TVM_NDK_CC", raising=False)
    cpu = {"kind": "llvm", "mtriple": triple, "num-cores": 4}
    target = Target({"kind": "opencl", "host": cpu} if accelerator else cpu)
    network = Network().eval().requires_grad_(False)
    relax = relax_network(exported_program(network, torch.zeros(1, 3, 8, 8)), target)
    weights = {f"p_{n.replace('.', '_')}": t.numpy() for n, t in network.named_parameters()}
    build_network(
        relax.module,
        target,
        [],
        {name: weights[name] for name in relax.parameters},
        tmp_path / "network.so",
    )
    workload = next(iter(build_table(relax, target).workloads.values()))
    build_whole(workload.module, target, tmp_path / "program.so")
    machine, needed = DEVICES[triple]
    for name in ("network.so", "program.so"):
        library = (tmp_path / name).read_bytes()
        assert machine_of(library) == machine
        assert all(b"\0" + found + b"\0" in library for found in needed)


def test_this_machines_own_processor_needs_no_other_linker() -> None:
    own = {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu"}
    assert foreign_triple({"kind": "llvm"}) is None
    if linking.platform.machine() == "x86_64":
        assert foreign_triple(own) is None
    assert foreign_triple({"kind": "llvm", "mtriple": ANDROID}) == ANDROID
    assert foreign_triple({"kind": "opencl", "host": {"mtriple": ANDROID}}) == ANDROID
    emulated = "x86_64-linux-android"
    assert foreign_triple({"kind": "llvm", "mtriple": emulated}) == emulated


def test_a_linker_that_is_missing_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TVM_NDK_CC", raising=False)
    check_linker(ANDROID)
    with pytest.raises(NoLinker, match="write aarch64-linux-android"):
        check_linker("arm64-linux-android")
    with pytest.raises(NoLinker, match="no linker here for hexagon-unknown-qurt"):
        check_linker("hexagon-unknown-qurt")
    with pytest.raises(NoLinker, match="no linker here for riscv64:"):
        check_linker("riscv64")
    monkeypatch.setattr(linking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoLinker, match="pip install ziglang, or name the NDK's compiler"):
        check_linker(ANDROID)
    with pytest.raises(NoLinker, match=r"pip install ziglang$"):
        check_linker("aarch64-linux-gnu")
    monkeypatch.setenv("TVM_NDK_CC", "aarch64-linux-android24-clang")
    check_linker(ANDROID)


def test_what_the_linker_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_NDK_CC", raising=False)
    link = linking.linker_for({"mtriple": ANDROID})
    assert link is not None
    with pytest.raises(RuntimeError, match=r"the linker failed: .*nothing\.o"):
        link(str(tmp_path / "library.so"), [str(tmp_path / "nothing.o")])
