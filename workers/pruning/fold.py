"""Batch norm folded into the layer before it, and the network as an exported program.

Folding rescales a layer's weights by the batch norm's running statistics, Jacob et al.,
Quantization and Training of Neural Networks (CVPR 2018), section 3.2. Modules keep their names, so
that a parameter of the exported program (``p_layer1_0_conv1_weight``) tells its layer.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from workers.errors import UserError, cause_of
from workers.pruning.dependency import on_device_of

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def exported_program(model: nn.Module, example_input: Tensor) -> ExportedProgram:
    """The network in evaluation mode as a ``torch.export`` program of the example's exact shape.

    The model's own modes are left as they are. Raises ``UserError`` with the cause when the network
    does not trace.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    example = on_device_of(network, example_input)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(network, (example,), strict=False)
    except Exception as error:
        raise UserError(
            "model.name",
            f"torch.export cannot trace the network on an input of shape "
            f"{tuple(example_input.shape)} ({cause_of(error)})",
            "its forward pass must be free of control flow that depends on the image's values",
        ) from error


FoldPairs = tuple[tuple[str, str], ...]
"""Names of (a layer's weight, the running mean of the batch norm that it alone feeds)."""


def fold_pairs(model: nn.Module, example_input: Tensor) -> FoldPairs:
    """The batch norms of a network that can be folded; the same whatever its widths.

    Raises ``UserError`` where the network does not trace.
    """
    return tuple(_pairs(exported_program(model, example_input)))


def fold_batch_norm(
    model: nn.Module, example_input: Tensor, pairs: FoldPairs | None = None
) -> nn.Module:
    """A copy of the network, in evaluation mode, without the batch norms that directly follow a
    convolution or linear layer. ``pairs`` saves finding them out again.

    A folded batch norm's place is taken by ``nn.Identity``; the layer before it has the same name,
    new weights and a bias. Where the layer's output is also used elsewhere, where no layer comes
    directly before, or where either module is used more than once, a batch norm becomes one product
    and one sum (``ScaleAndShift``). Raises ``UserError`` where the network does not trace.
    """
    network = copy.deepcopy(model).eval()
    owners = {
        name: module
        for module_name, module in network.named_modules()
        for name in _tensor_names(module_name, module)
    }
    paths = {module: name for name, module in network.named_modules()}
    for layer_weight, statistics in fold_pairs(network, example_input) if pairs is None else pairs:
        layer, norm = owners.get(layer_weight), owners.get(statistics)
        if not isinstance(layer, _FOLDABLE) or not isinstance(norm, _BatchNorm):
            continue
        _fold(layer, norm)
        parent, _, attribute = paths[norm].rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Identity())
    for name, norm in list(network.named_modules()):
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and name:
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, ScaleAndShift(norm))
    return network


class ScaleAndShift(nn.Module):
    """What a batch norm computes in evaluation mode, its statistics multiplied out.

    Its parameters have the shape ``(1, channels, 1, 1)``. None is called weight: a call site is
    known by the weight of its convolution, and may compute this too.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
        if norm.affine:
            scale = scale * norm.weight.detach().double()
        shift = -norm.running_mean.detach().double() * scale
        if norm.affine:
            shift = shift + norm.bias.detach().double()
        self.scale, self.shift = (
            nn.Parameter(values.to(norm.running_mean.dtype).reshape(1, -1, 1, 1), False)
            for values in (scale, shift)
        )

    def forward(self, maps: Tensor) -> Tensor:
        if maps.ndim == 4:
            return maps * self.scale + self.shift
        shape = (1, -1, *[1] * (maps.ndim - 2))
        return maps * self.scale.reshape(shape) + self.shift.reshape(shape)


def _tensor_names(module_name: str, module: nn.Module) -> list[str]:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [f"{module_name}.{name}" if module_name else name for name, _ in tensors]


def _pairs(program: ExportedProgram) -> list[tuple[str, str]]:
    """Names of (layer's weight, batch norm's running mean) where one directly feeds the other."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    pairs = []
    for node in program.graph.nodes:
        if node.op != "call_function" or "batch_norm" not in str(node.target):
            continue
        layer = node.args[0]
        weight, mean = _argument(layer, 1), _argument(node, 3)
        if weight is None or mean is None or len(layer.users) != 1:
            continue
        if not str(layer.target).startswith(("aten.conv", "aten.linear")):
            continue
        used_once = len(weight.users) == len(mean.users) == 1
        if used_once and weight.name in names and mean.name in names:
            pairs.append((names[weight.name], names[mean.name]))
    return pairs


def _argument(node: object, index: int) -> Node | None:
    if not isinstance(node, Node) or len(node.args) <= index:
        return None
    argument = node.args[index]
    return argument if isinstance(argument, Node) else None


def _fold(layer: Any, norm: Any) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight,
        layer.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight if norm.affine else torch.ones_like(norm.running_mean),
        norm.bias if norm.affine else torch.zeros_like(norm.running_mean),
    )
