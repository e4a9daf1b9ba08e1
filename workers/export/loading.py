"""Gives a pruned network back from its export folder. Starts nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from schemas.config import ModelConfig
from schemas.network import Structure
from workers.errors import UserError
from workers.export.torch_exports import FORMAT, STRUCTURE, WEIGHTS
from workers.pruning.surgery import materialise
from workers.training.networks import build_model, example_input
from workers.training.weights import load_weights, put_weights


def read_description(folder: Path | str) -> dict[str, Any]:
    """The contents of ``structure.json``: model, structure, classes, input, preprocessing.

    Raises ``UserError`` when the folder holds no export, or one of another format.
    """
    path = Path(folder) / STRUCTURE
    try:
        description: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            "folder", f"{path} cannot be read ({error})", "name the export folder of a finished run"
        ) from error
    if description.get("format") != FORMAT:
        raise UserError(
            "folder",
            f"{path} has format {description.get('format')!r}, not {FORMAT}",
            "load it with the version of the project that wrote it",
        )
    return description


def load_pruned(folder: Path | str) -> nn.Module:
    """The pruned network in evaluation mode, on the CPU.

    A network of the user's own (``module:function``) needs that module on the path. Raises
    ``UserError`` when the folder is incomplete.
    """
    description = read_description(folder)
    config = ModelConfig.model_validate(description["model"])
    _, channels, size, _ = description["input"]["shape"]
    classes = len(description["class_names"])
    model = materialise(
        lambda: build_model(config, classes, channels, image_size=size),
        example_input(1, channels, size),
        Structure.model_validate(description["structure"]),
    )
    weights = Path(folder) / WEIGHTS
    try:
        put_weights(model, load_weights(weights))
    except (OSError, RuntimeError) as error:
        raise UserError(
            "folder", f"{weights} does not hold the network's weights ({error})", "export again"
        ) from error
    return model.eval().requires_grad_(False)
