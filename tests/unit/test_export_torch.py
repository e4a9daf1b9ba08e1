"""An export folder holds one network four times over, and gives it back without ray or tvm."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from schemas.config import ModelConfig
from schemas.network import Structure
from workers.errors import UserError
from workers.export import torch_exports
from workers.export.loading import load_pruned, read_description
from workers.export.torch_exports import TorchExports, write_torch_exports
from workers.pruning.groups import channel_groups
from workers.pruning.surgery import prune_to
from workers.training.images import Preprocessing
from workers.training.networks import build_model
from workers.whole_files import copy_whole

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ModelConfig()
DENSE = Structure()
WIDTHS = {"conv1": 12, "layer2.0.conv1": 20, "layer3.0.conv2": 40}
CLASSES = tuple(f"digit {i}" for i in range(10))
LIBRARY = {"file": "model.so", "threads": 2}
PREPROCESSING = Preprocessing(32, 1, 32, 16.0, (0.3,), (0.4,))
IMAGES = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def export(
    network: nn.Module,
    folder: Path,
    config: ModelConfig,
    structure: Structure = DENSE,
    batch_size: int = 1,
) -> TorchExports:
    return write_torch_exports(
        folder,
        network,
        structure=structure,
        config=config,
        class_names=CLASSES,
        preprocessing=PREPROCESSING,
        batch_size=batch_size,
        library=LIBRARY,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, TorchExports]:
    folder = tmp_path_factory.mktemp("export")
    dense = build_model(CONFIG, 10, 1, seed=3)
    network = prune_to(dense, IMAGES, channel_groups(dense, IMAGES), WIDTHS)
    network(IMAGES)  # moves the batch norms' statistics
    exports = export(network, folder, CONFIG, Structure(widths=WIDTHS), batch_size=2)
    return folder, network.eval(), exports


def test_the_loaded_network_is_the_exported_one(
    exported: tuple[Path, nn.Module, TorchExports],
) -> None:
    folder, network, _ = exported
    loaded = load_pruned(folder)
    assert not any(module.training for module in loaded.modules())
    assert loaded.conv1.out_channels == 12
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))


def test_the_exported_program_computes_the_same(
    exported: tuple[Path, nn.Module, TorchExports],
) -> None:
    folder, network, exports = exported
    program = torch.export.load(folder / exports.program)
    with torch.no_grad():
        assert torch.allclose(program.module()(IMAGES), network(IMAGES), atol=1e-6)


def test_the_onnx_network_computes_the_same(
    exported: tuple[Path, nn.Module, TorchExports],
) -> None:
    folder, network, exports = exported
    session = onnxruntime.InferenceSession(folder / exports.onnx)
    (found,) = session.run(["logits"], {"image": IMAGES.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), network(IMAGES), atol=1e-4)


def test_what_onnx_cannot_say_is_left_out_and_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_pooling.py").write_text(
        "from torch import nn\n"
        "def pooled():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveMaxPool2d((3, 5)),\n"
        "                         nn.Flatten(), nn.Linear(60, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    config, folder = ModelConfig(name="my_pooling:pooled"), tmp_path / "export"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"of an earlier network")
    network = build_model(config, 10, 1)
    exports = export(network, folder, config)
    assert exports.onnx is None
    assert exports.note.startswith("no ONNX file: my_pooling:pooled does not export to ONNX (")
    assert "aten.adaptive_max_pool2d" in exports.note
    assert exports.note.isprintable(), "one line, without the colours of a terminal"
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.pt2",
        "structure.json",
        "weights.safetensors",
    ]
    with torch.no_grad():
        assert torch.equal(load_pruned(folder)(IMAGES), network.eval()(IMAGES))


def test_an_onnx_network_that_computes_something_else_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_model(CONFIG, 10, 1)
    other = build_model(CONFIG, 10, 1, seed=1).eval()
    wrong = torch_exports._onnx_bytes(torch.export.export(other, (IMAGES[:1],)))
    monkeypatch.setattr(torch_exports, "_onnx_bytes", lambda _: wrong)
    exports = export(network, tmp_path, CONFIG)
    assert exports.onnx is None and "computes something else" in exports.note
    assert not (tmp_path / "model.onnx").exists()


def test_the_folder_says_how_to_use_it(exported: tuple[Path, nn.Module, TorchExports]) -> None:
    folder, _, _ = exported
    description = read_description(folder)
    assert description["structure"] == {"widths": WIDTHS}
    assert description["class_names"] == list(CLASSES)
    assert description["library"] == LIBRARY
    assert description["input"] == {"name": "image", "shape": [2, 1, 32, 32], "dtype": "float32"}
    assert description["preprocessing"]["mean"] == [0.3]
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.onnx",
        "model.pt2",
        "structure.json",
        "weights.safetensors",
    ]


def test_loading_imports_neither_ray_nor_tvm(
    exported: tuple[Path, nn.Module, TorchExports],
) -> None:
    code = (
        "import sys\n"
        "from workers.export.loading import load_pruned\n"
        "import workers.training.train, workers.training.data\n"
        "load_pruned(sys.argv[1])\n"
        "print(sorted({'ray', 'tvm'} & {name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported[0])],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_copied_library_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "built.so", tmp_path / "export" / "model.so"
    source.write_bytes(b"first")
    copy_whole(source, copy)
    source.write_bytes(b"second")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="is full: free some space"):
        patch.setattr(os, "fsync", full)
        copy_whole(source, copy)
    assert [path.read_bytes() for path in copy.parent.iterdir()] == [b"first"]
    copy_whole(source, copy)
    assert [path.read_bytes() for path in copy.parent.iterdir()] == [b"second"]


def test_a_folder_without_an_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"structure\.json cannot be read"):
        load_pruned(tmp_path)
    (tmp_path / "structure.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="has format 99, not 1"):
        load_pruned(tmp_path)
