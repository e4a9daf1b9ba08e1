"""Weights as safetensors: equal weights give equal bytes, and reading them runs no code."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from workers.errors import UserError
from workers.whole_files import write_whole

_FIELD = "model.checkpoint"


def weights_to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dictionary as the bytes of a safetensors file."""
    # Clones: safetensors refuses tensors that share memory.
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    )


def weights_from_bytes(data: bytes) -> dict[str, Tensor]:
    """The state dictionary in the bytes of a safetensors file."""
    return safetensors.torch.load(data)


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes a state dictionary as a safetensors file; the file is there whole or not at all."""
    write_whole(path, weights_to_bytes(state))


def put_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dictionary that was a safetensors file, ``strict``.

    Such a file holds tensors alone. Modules that ask for the version of their weights (MNASNet's)
    are told that they are of the model's own version.
    """
    own = OrderedDict(state)
    own._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(own, strict=True)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a safetensors file."""
    return safetensors.torch.load_file(path)


def load_checkpoint(model: nn.Module, config: ModelConfig) -> bool:
    """Loads ``config.checkpoint`` into the dense network; ``False`` when there is none.

    Takes a ``.safetensors`` file, or a ``.pt``/``.pth`` state dictionary (also one under the key
    ``state_dict``, also with the ``module.`` prefix of data-parallel training), which is read
    without unpickling code. Raises ``UserError`` naming ``model.checkpoint`` when the file is
    missing, not readable, or of another network, or holds weights that are infinite or no numbers.
    Weights of modules that were taken out of the network (auxiliary classifiers) are passed over.
    """
    if config.checkpoint is None:
        return False
    state = _read(Path(config.checkpoint).expanduser())
    expected = model.state_dict()
    taken_out = tuple(f"{name}." for name, child in model._modules.items() if child is None)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(taken_out)}
    missing, unexpected = sorted(expected.keys() - state), sorted(state.keys() - expected)
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    problems = [
        *([f"{len(missing)} tensors are missing ({_some(missing)})"] if missing else []),
        *([f"{len(unexpected)} are unknown ({_some(unexpected)})"] if unexpected else []),
        *([f"{len(wrong)} have another shape ({_some(sorted(wrong))})"] if wrong else []),
    ]
    if problems:
        raise UserError(
            _FIELD,
            f"{config.checkpoint} is not of {config.name}: {', '.join(problems)}",
            "name the checkpoint of this network, or correct model.name and model.arguments",
        )
    broken = not_finite(state)
    if broken:
        raise UserError(
            _FIELD,
            f"{config.checkpoint} holds weights that are infinite or not a number "
            f"({_some(broken)})",
            "name a checkpoint from before its training diverged",
        )
    put_weights(model, state)
    return True


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold infinite values, or what is no number."""
    return sorted(name for name, tensor in state.items() if not bool(tensor.isfinite().all()))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            _FIELD, f"there is no file {path}", "correct the path, or leave it out to train"
        )
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(_FIELD, f"{path} is no .safetensors, .pt or .pth file", "convert it")
    try:
        if path.suffix == ".safetensors":
            return load_weights(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise UserError(_FIELD, f"{path} cannot be read ({error})", "save it again") from error
    except (
        Exception
    ) as error:  # torch.load raises pickle errors for what is no plain state dictionary
        raise UserError(
            _FIELD,
            f"{path} holds more than tensors",
            "save model.state_dict() alone, best with safetensors.torch.save_file",
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            _FIELD, f"{path} holds no state dictionary", "save model.state_dict() alone"
        )
    if content and all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)
