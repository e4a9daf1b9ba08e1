"""Convolutions of 3x3 with fewer multiplications, where that pays.

Winograd's minimal filtering (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
CVPR 2016): an output tile of m x m takes (m + 2)^2 multiplications for each pair of channels
instead of 9 m^2. A convolution becomes four functions: its weights are transformed once, offline;
the data is transformed, multiplied with them, tile position by tile position, and transformed back.
The product is a matrix product over channels, tuned and pruned like a convolution; what follows the
convolution (bias, relu, a residual) is fused into the transform back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax, te, tirx
from tvm.topi.nn.winograd_util import _cook_toom_convolution, _interpolation_points

if TYPE_CHECKING:  # the builder's process has TVM without torch
    from torch.export import ExportedProgram

DATA, PRODUCT, OUTPUT = "winograd_data", "conv2d_winograd", "winograd_output"
"""Names of the blocks that transform the data, multiply, and transform back."""
ROWS, TILE = "winograd_rows", "winograd_tile"
"""Names of the blocks that transform a tile's columns, and that hold a whole tile."""

Forms = Mapping[str, int]
"""Name of a convolution's weight parameter -> edge of its output tiles. The others are direct."""
ALL_DIRECT: Forms = MappingProxyType({})

_TILES = (2, 4)
_KERNEL = 3
_OPERATIONS_PER_BYTE = 8
"""What a processor computes while it fetches a byte: 200 GFLOP/s against 25 GB/s here."""
_OPERATIONS_PER_CALL = 6e5
"""What it computes in the 3 microseconds that one more call costs."""
_WORTH_IT = 0.85
_OPAQUE, _FUSES_WHAT_FOLLOWS = 8, 4  # relax's OpPatternKind


@dataclass(frozen=True)
class Shape:
    """A convolution of 3x3 and stride 1: batch, output height and width, channels in and out."""

    batch: int
    height: int
    width: int
    channels_in: int
    channels_out: int

    def tiles(self, edge: int) -> int:
        """Output tiles of ``edge`` x ``edge`` that cover the output."""
        return self.batch * -(-self.height // edge) * -(-self.width // edge)


def tile_edge(shape: Shape) -> int | None:
    """The edge of the output tiles that is expected to be fastest; None for the direct form.

    Counted are operations, and bytes and calls at what a processor computes meanwhile: larger tiles
    multiply less, and have more weights and more intermediate data to move. What tiles save has to
    be worth it, since pruning makes the transforms' share larger.
    """
    pixels = shape.batch * shape.height * shape.width
    channels = shape.channels_in * shape.channels_out
    direct = 2.0 * 9 * pixels * channels + _OPERATIONS_PER_BYTE * 4 * 9 * channels
    costs: dict[int | None, float] = {None: _WORTH_IT * direct}
    for edge in _TILES:
        points, tiles = (edge + _KERNEL - 1) ** 2, shape.tiles(edge)
        moved = points * (2 * tiles * (shape.channels_in + shape.channels_out) + channels)
        computed = 2.0 * points * tiles * channels + 2 * _OPERATIONS_PER_CALL
        costs[edge] = computed + _OPERATIONS_PER_BYTE * 4 * moved
    return min(costs, key=lambda form: costs[form])


def winograd_forms(program: ExportedProgram) -> dict[str, int]:
    """The convolutions of a network that are to be computed by tiles, and their tiles' edges."""
    names = program.graph_signature.inputs_to_parameters
    forms: dict[str, int] = {}
    direct: set[str] = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or not str(node.target).startswith("aten.conv2d"):
            continue
        weight = node.args[1]
        if weight.name not in names:
            continue
        shape = _shape_of(node)
        edge = None if shape is None else tile_edge(shape)
        if edge is None or forms.get(weight.name, edge) != edge:
            direct.add(weight.name)
        else:
            forms[weight.name] = edge
    return {name: edge for name, edge in forms.items() if name not in direct}


def _shape_of(node: Any) -> Shape | None:
    """The shape of an ``aten.conv2d`` that tiles can compute; None for any other."""
    defaults = (None, None, None, (1, 1), (0, 0), (1, 1), 1)
    arguments = (*node.args, *defaults[len(node.args) :])
    stride, padding, dilation, groups = arguments[3:7]
    weight = tuple(node.args[1].meta["val"].shape)
    if weight[2:] != (_KERNEL, _KERNEL) or isinstance(padding, str) or groups != 1:
        return None
    if not all(set(values) == {1} for values in (stride, dilation)):
        return None
    batch, _, height, width = node.meta["val"].shape
    return Shape(int(batch), int(height), int(width), int(weight[1]), int(weight[0]))


def legalize_convolutions(forms: Forms) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    """How ``relax.nn.conv2d`` (NHWC, HWIO) becomes functions: by tiles where ``forms`` says so."""
    otherwise = relax.transform.legalize_ops.nn._nn_conv2d

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        edge = forms.get(_parameter(builder, call.args[1]))
        if edge is None:
            return otherwise(builder, call)
        return _by_tiles(builder, call, edge)

    return legalize


def _parameter(builder: relax.BlockBuilder, weight: Any) -> str:
    """Name of the parameter that a weight, as the convolution takes it, comes from."""
    while True:
        bound = builder.lookup_binding(weight)
        if bound is None:
            return str(weight.name)
        if isinstance(bound, relax.Call):  # a transpose; legalised, its arguments are a tuple
            bound = bound.args[1][0] if len(bound.args) > 1 else bound.args[0]
        weight = bound


def _by_tiles(builder: relax.BlockBuilder, call: relax.Call, edge: int) -> relax.Expr:
    data, weight = call.args
    top, left, bottom, right = (int(value) for value in call.attrs.padding)
    batch, height, width, channels_in = (int(extent) for extent in data.ty.shape)
    channels_out = int(weight.ty.shape[-1])
    shape = Shape(
        batch, height + top + bottom - 2, width + left + right - 2, channels_in, channels_out
    )
    transforms = Transforms(edge)
    packed = _call(builder, "winograd_weight", transforms.weight(channels_in, channels_out), weight)
    spread = _call(builder, DATA, transforms.data(shape, height, width, (top, left)), data, _OPAQUE)
    product = _call(
        builder,
        PRODUCT,
        multiplied(transforms.points, shape.tiles(edge), channels_in, channels_out),
        [spread, packed],
        _OPAQUE,
    )
    return _call(builder, OUTPUT, transforms.output(shape), product, _FUSES_WHAT_FOLLOWS)


def _call(
    builder: relax.BlockBuilder,
    name: str,
    tensors: list[te.Tensor],
    arguments: Any,
    pattern: int = 2,
) -> relax.Expr:
    """A call of the function from ``tensors[:-1]`` to ``tensors[-1]``, added to the module."""
    function = te.create_prim_func(tensors, "int64").with_attr("op_pattern", pattern)
    variable = builder.add_func(function.without_attr("global_symbol"), name)
    result = tensors[-1]
    type_ = relax.TensorType([int(extent) for extent in result.shape], result.dtype)
    given = arguments if isinstance(arguments, list) else [arguments]
    given = [builder.emit(one) if isinstance(one, relax.Call) else one for one in given]
    return relax.call_tir(variable, given, type_)


class Transforms:
    """The three linear transforms for output tiles of one edge."""

    def __init__(self, edge: int) -> None:
        """``edge`` is at least 2."""
        self.edge = edge
        self.span = edge + _KERNEL - 1
        """Edge of the input tile, and of the transformed one."""
        self.points = self.span**2
        points = _interpolation_points(self.span - 1)
        # each is applied as (matrix^T x matrix): of output, data and weight tiles
        self._output, self._data, weight = _cook_toom_convolution(points, edge, _KERNEL)
        self._weight = weight.T

    def weight(self, channels_in: int, channels_out: int) -> list[te.Tensor]:
        """(3, 3, in, out) -> (points, in, out)."""
        given = te.placeholder((_KERNEL, _KERNEL, channels_in, channels_out), name="weight")
        span, matrix = self.span, self._weight
        rows = te.compute(
            (span, _KERNEL, channels_in, channels_out),
            lambda y, x, i, o: _combined(y, matrix, lambda k: given[k, x, i, o]),
            name="rows",
        )
        packed = te.compute(
            (self.points, channels_in, channels_out),
            lambda p, i, o: _combined(p % span, matrix, lambda k: rows[p // span, k, i, o]),
            name="packed",
        )
        return [given, packed]

    def data(
        self, shape: Shape, height: int, width: int, before: tuple[int, int]
    ) -> list[te.Tensor]:
        """(batch, height, width, in) -> (points, tiles, in), padded by ``before`` top and left."""
        edge, span, matrix = self.edge, self.span, self._data
        down, across = -(-shape.height // edge), -(-shape.width // edge)
        channels, tiles = shape.channels_in, shape.tiles(edge)
        given = te.placeholder((shape.batch, height, width, channels), name="data")

        def pixel(y: Any, x: Any, t: Any, c: Any) -> Any:
            row = t // across % down * edge + y - before[0]
            column = t % across * edge + x - before[1]
            inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
            value = given[t // (across * down), row, column, c]
            return tirx.if_then_else(inside, value, tirx.const(0.0, given.dtype))

        tile = te.compute((span, span, tiles, channels), pixel, name=TILE)
        rows = te.compute(
            (span, span, tiles, channels),
            lambda y, x, t, c: _combined(y, matrix, lambda k: tile[k, x, t, c]),
            name=ROWS,
        )
        spread = te.compute(
            (self.points, tiles, channels),
            lambda p, t, c: _combined(p % span, matrix, lambda k: rows[p // span, k, t, c]),
            name=DATA,
        )
        return [given, spread]

    def output(self, shape: Shape) -> list[te.Tensor]:
        """(points, tiles, out) -> (batch, height, width, out)."""
        edge, span, matrix = self.edge, self.span, self._output
        down, across = -(-shape.height // edge), -(-shape.width // edge)
        channels, tiles = shape.channels_out, shape.tiles(edge)
        given = te.placeholder((self.points, tiles, channels), name="product")
        rows = te.compute(
            (edge, span, tiles, channels),
            lambda y, x, t, c: _combined(y, matrix, lambda k: given[k * span + x, t, c]),
            name=ROWS,
        )
        tile = te.compute(
            (edge, edge, tiles, channels),
            lambda y, x, t, c: _combined(x, matrix, lambda k: rows[y, k, t, c]),
            name=TILE,
        )
        result = te.compute(
            (shape.batch, shape.height, shape.width, channels),
            lambda n, h, w, c: tile[
                h % edge, w % edge, (n * down + h // edge) * across + w // edge, c
            ],
            name=OUTPUT,
        )
        return [given, result]


def multiplied(points: int, tiles: int, channels_in: int, channels_out: int) -> list[te.Tensor]:
    """(points, tiles, in) times (points, in, out), point by point."""
    data = te.placeholder((points, tiles, channels_in), name="data")
    weight = te.placeholder((points, channels_in, channels_out), name="weight")
    i = te.reduce_axis((0, channels_in), name="i")
    product = te.compute(
        (points, tiles, channels_out),
        lambda p, t, o: te.sum(data[p, t, i] * weight[p, i, o], axis=[i]),
        name=PRODUCT,
    )
    return [data, weight, product]


def _combined(index: Any, matrix: np.ndarray[Any, Any], value: Callable[[int], Any]) -> Any:
    """Sum over k of ``matrix[k, index]`` times ``value(k)``.

    One sum for each index, to be chosen among when the loop over it is unrolled: what is multiplied
    by 0 or 1 costs nothing then.
    """
    sums = []
    for column in matrix.T:
        total: Any = None
        for k, factor in enumerate(column):
            if factor:
                term = value(k) if factor == 1 else tirx.const(float(factor), "float32") * value(k)
                total = term if total is None else total + term
        sums.append(total)
    chosen = sums[-1]
    for position in range(len(sums) - 2, -1, -1):
        chosen = tirx.Select(index == position, sums[position], chosen)
    return chosen
