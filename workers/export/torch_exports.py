"""Writes the torch side of a run's result: weights, structure, ``torch.export`` program, ONNX.

ONNX has no operator for some of what torch computes. The rest is handed over without it then, with
a note that says why.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.export import ExportedProgram

from schemas.config import ModelConfig
from schemas.network import Structure
from workers.errors import cause_of
from workers.pruning.fold import exported_program
from workers.training.images import Preprocessing
from workers.training.networks import example_input
from workers.training.weights import save_weights
from workers.whole_files import write_whole

WEIGHTS, STRUCTURE, PROGRAM, ONNX = (
    "weights.safetensors",
    "structure.json",
    "model.pt2",
    "model.onnx",
)
FORMAT = 1
_LARGEST_DIFFERENCE = 1e-3  # of the largest logit, as for the compiled library
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class TorchExports:
    """Names of the files in the export folder.

    ``onnx`` is ``None`` where the network does not export to it, or to one that computes something
    else (looked at where onnxruntime is installed); ``note`` says why, in one line.
    """

    weights: str
    structure: str
    program: str
    onnx: str | None
    note: str = ""


def write_torch_exports(
    folder: Path,
    model: nn.Module,
    *,
    structure: Structure,
    config: ModelConfig,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    batch_size: int,
    library: Mapping[str, JsonValue],
) -> TorchExports:
    """Writes the network, as it computes in evaluation mode, for batches of ``batch_size`` images.

    ``library`` is what the compiled library beside these files needs; ``structure.json`` tells it.

    Each file is there whole or not at all. Raises ``UserError`` when the network does not trace.
    """
    example = example_input(batch_size, preprocessing.channels, preprocessing.size)
    program = exported_program(model, example)
    save_weights(model.state_dict(), folder / WEIGHTS)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_whole(folder / PROGRAM, buffer.getvalue())
    description = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "structure": structure.model_dump(mode="json"),
        "class_names": list(class_names),
        "input": {"name": "image", "shape": list(example.shape), "dtype": "float32"},
        "output": {"name": "logits", "shape": [batch_size, len(class_names)], "dtype": "float32"},
        "preprocessing": preprocessing.as_data(),
        "library": dict(library),
    }
    write_whole(folder / STRUCTURE, (json.dumps(description, indent=2) + "\n").encode())
    # What an earlier export left there is not this network's.
    (folder / ONNX).unlink(missing_ok=True)
    try:
        onnx = _onnx_bytes(program)
        difference = _onnx_difference(onnx, program.module(), example)
    # Whatever the exporter or the runtime raises: its file is the only one that can be left out.
    except Exception as error:
        note = f"no ONNX file: {config.name} does not export to ONNX ({_cause(error)})"
        return TorchExports(WEIGHTS, STRUCTURE, PROGRAM, None, note)
    if difference is not None and not difference <= _LARGEST_DIFFERENCE:
        note = (
            f"no ONNX file: what {config.name} exports to computes something else: a logit differs "
            f"by {difference:.2g} of the largest"
        )
        return TorchExports(WEIGHTS, STRUCTURE, PROGRAM, None, note)
    write_whole(folder / ONNX, onnx)
    return TorchExports(WEIGHTS, STRUCTURE, PROGRAM, ONNX)


def _cause(error: BaseException) -> str:
    """What an error began with, in one line without the colours of a terminal."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _TERMINAL_CODE.sub("", cause_of(error))


def _onnx_bytes(program: ExportedProgram) -> bytes:
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        path = Path(scratch) / ONNX
        torch.onnx.export(
            program,
            (),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own log lines and warnings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _onnx_difference(onnx: bytes, model: nn.Module, example: Tensor) -> float | None:
    """Largest difference of a logit between the ONNX network and torch's, on random images, as a
    share of the largest logit. ``None`` where onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = model(images)
    return float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
