"""From an exported torch program to a Relax module whose call sites know their torch modules.

The weights stay parameters of the module: one module serves every network of the same structure,
and each call site names its torch module exactly, through the parameter that feeds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from torch.export import ExportedProgram
from tvm import relax
from tvm.ir import IRModule
from tvm.relax.frontend.torch import from_exported_program
from tvm.target import Target

from workers.compiling.names import named_by_position
from workers.compiling.rewrites import rewritten
from workers.compiling.winograd import ALL_DIRECT, Forms, legalize_convolutions
from workers.errors import UserError

_LAYOUT = {"relax.nn.conv2d": ["NHWC", "HWIO"]}


@dataclass(frozen=True)
class CallSite:
    """One fused call of the compiled network, in execution order.

    ``weight`` is the parameter that is the weight of its layer, ``module`` that layer in torch.
    """

    index: int
    function: str
    parameters: tuple[str, ...]
    weight: str | None
    module: str | None
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class RelaxNetwork:
    """A fused Relax module, its call sites that run at inference, and its parameters' names.

    ``module`` takes the input image and then every parameter of ``parameters``, in that order.
    """

    module: IRModule
    sites: tuple[CallSite, ...]
    parameters: tuple[str, ...]
    tensors: dict[str, str]
    """Parameter's name -> name of the torch network's parameter or buffer."""
    weight_bytes: int
    """Of all parameters together."""


def relax_network(
    program: ExportedProgram, target: Target, forms: Forms = ALL_DIRECT
) -> RelaxNetwork:
    """Import ``program`` (batch norm folded), choose layouts, fuse, and find the call sites.

    ``forms`` says which convolutions are computed by tiles. Raises ``UserError`` when a call site
    is fed by the weights of two modules.
    """
    imported = from_exported_program(program, keep_params_as_input=True)
    module, _ = relax.frontend.detach_params(imported)
    module = rewritten(module)
    parameters = tuple(variable.name for variable in module["main"].params[1:])
    weight_bytes = 4 * sum(math.prod(_shape(variable)) for variable in module["main"].params[1:])
    with target:
        module = tvm.ir.transform.Sequential(
            [
                relax.transform.DecomposeOpsForInference(),
                relax.transform.CanonicalizeBindings(),
                relax.transform.FoldConstant(),
                relax.transform.ConvertLayout(_LAYOUT),
                relax.transform.LegalizeOps({"relax.nn.conv2d": legalize_convolutions(forms)}),
                named_by_position,
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
            ]
        )(module)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    module, sites = _find_sites(module, set(parameters), names)
    tensors = {name: names[name] for name in parameters if name in names}
    return RelaxNetwork(module, sites, parameters, tensors, weight_bytes)


def _find_sites(
    module: IRModule, parameters: set[str], torch_names: dict[str, str]
) -> tuple[IRModule, tuple[CallSite, ...]]:
    """Trace which parameters feed each call; mark weight arguments as free in their layout.

    A call all of whose inputs come from parameters runs once, offline, and is no call site.
    """
    origin: dict[Any, tuple[str, ...]] = {}
    main = module["main"]
    dimensions: dict[str, int] = {}  # of what torch calls a weight
    for variable in main.params:
        if variable.name in parameters:
            origin[variable] = (variable.name,)
            if torch_names.get(variable.name, "").endswith(".weight"):
                dimensions[variable.name] = len(_shape(variable))
    sites: list[CallSite] = []
    free: dict[str, set[int]] = {}
    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if not _is_call_tir(value):
                if isinstance(value, relax.Var) and value in origin:
                    origin[binding.var] = origin[value]
                continue
            arguments = list(value.args[1])
            fed = [origin.get(argument) for argument in arguments]
            if arguments and all(names is not None for names in fed):
                origin[binding.var] = tuple(name for names in fed if names for name in names)
                continue
            function = value.args[0].name_hint
            weight_positions = {i for i, names in enumerate(fed) if names is not None}
            free[function] = free.get(function, weight_positions) & weight_positions
            feeding = tuple(dict.fromkeys(name for names in fed if names for name in names))
            weight = _weight_of(feeding, dimensions, torch_names, function)
            sites.append(
                CallSite(
                    index=len(sites),
                    function=function,
                    parameters=feeding,
                    weight=weight,
                    module=weight and torch_names[weight].removesuffix(".weight"),
                    output_shape=_shape(binding.var),
                )
            )
    for function, positions in free.items():
        if positions:
            variable = module.get_global_var(function)
            module[variable] = module[variable].with_attr("layout_free_buffers", sorted(positions))
    return module, tuple(sites)


def _is_call_tir(value: Any) -> bool:
    return isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.call_tir")


def _shape(variable: Any) -> tuple[int, ...]:
    info = variable.ty if hasattr(variable, "ty") else variable.struct_info
    return tuple(int(extent) for extent in info.shape)


def _weight_of(
    parameters: tuple[str, ...],
    dimensions: dict[str, int],
    torch_names: dict[str, str],
    function: str,
) -> str | None:
    """The one of ``parameters`` that is the weight of a layer.

    A layer's has several dimensions; what is fused to it, such as a PReLU, may have one for each
    channel. That names a call where no layer does.
    """
    weights = [name for name in parameters if name in dimensions]
    layers = [name for name in weights if dimensions[name] > 1]
    if len(layers) > 1:
        modules = sorted(torch_names[name].removesuffix(".weight") for name in layers)
        raise UserError(
            "model.name",
            f"call site {function} is fed by the weights of several modules: {modules}",
            "report the network's name; until then choose another network",
        )
    if layers:
        return layers[0]
    return weights[0] if len(weights) == 1 else None
