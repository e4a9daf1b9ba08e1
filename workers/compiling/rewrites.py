"""Rewrites of an imported network, before its layouts are chosen: the same values for less work."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

_CLIP, _MATMUL, _POOL, _RESHAPE, _PERMUTE, _SPLIT = (
    tvm.ir.Op.get(f"relax.{name}")
    for name in ("clip", "matmul", "nn.adaptive_avg_pool2d", "reshape", "permute_dims", "split")
)


def rewritten(module: IRModule) -> IRModule:
    """The module with every rewrite of this file applied to its ``main``."""
    variable = module.get_global_var("main")
    function = module[variable]
    for rewrite in (_PlainClips, _SlicedSplits, _FoldedRepetition):
        function = rewrite(module).visit_expr(function)
    module.update_func(variable, function)
    return tvm.ir.transform.Sequential(
        [relax.transform.Normalize(), relax.transform.DeadCodeElimination()]
    )(module)


@mutator
class _PlainClips(PyExprMutator):  # type: ignore[misc]
    """Clips (relu6, hard swish) as the minimum of a maximum.

    The choice of layouts knows those two, and not the clip: around each one it would go back to
    channels-first and forth again.
    """

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != _CLIP:
            return call
        low, high = (relax.const(float(bound.value), "float32") for bound in call.args[1:])
        return relax.op.minimum(relax.op.maximum(call.args[0], low), high)


@mutator
class _SlicedSplits(PyExprMutator):  # type: ignore[misc]
    """The parts of a split as slices of the whole.

    A split is one call with several outputs, which is no task: every call site here has one.
    """

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        item = super().visit_tuple_getitem_(item)
        whole = item.tuple_value
        split = self.lookup_binding(whole) if isinstance(whole, relax.Var) else whole
        if not isinstance(split, relax.Call) or split.op != _SPLIT:
            return item
        axis = int(split.attrs.axis)
        parts = [int(part.shape[axis]) for part in split.ty.fields]
        begin = sum(parts[: item.index])
        end = begin + parts[item.index]
        return relax.op.strided_slice(split.args[0], [axis], [begin], [end])


@mutator
class _FoldedRepetition(PyExprMutator):  # type: ignore[misc]
    """A linear layer behind an average pooling that does nothing but repeat one pixel.

    Small images leave one pixel where a network's classifier expects more (VGG: 7 x 7). The layer
    multiplies each repetition with weights of its own; their sum, made once offline, does the same.
    """

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        pixel, weight = self._repeated(call), self._transposed(call)
        if pixel is None or weight is None:
            return call
        batch, channels = (int(extent) for extent in list(pixel.ty.shape)[:2])
        outputs = int(weight.ty.shape[0])
        build = self.builder_
        repeats = build.emit(relax.op.reshape(weight, (outputs, channels, -1)))
        summed = build.emit(relax.op.permute_dims(build.emit(relax.op.sum(repeats, axis=[2]))))
        flat = build.emit(relax.op.reshape(pixel, (batch, channels)))
        return relax.op.matmul(flat, summed)

    def _repeated(self, call: relax.Call) -> relax.Expr | None:
        """The pixel whose repetitions, one channel after the other, are the product's left side."""
        flat = self._bound(call, _MATMUL, 0)
        pooled = self._bound(flat, _RESHAPE, 0)
        if pooled is None or pooled.op != _POOL:
            return None
        pixel = pooled.args[0]
        shapes = [[int(extent) for extent in one.ty.shape] for one in (pixel, pooled, flat)]
        is_repetition = shapes[0][2:] == [1, 1] and len(shapes[2]) == 2
        return pixel if is_repetition and shapes[2][0] == shapes[0][0] else None

    def _transposed(self, call: relax.Call) -> relax.Expr | None:
        """What the product's right side is the transpose of."""
        weight = self._bound(call, _MATMUL, 1)
        is_transpose = isinstance(weight, relax.Call) and weight.op == _PERMUTE
        return weight.args[0] if is_transpose and len(weight.ty.shape) == 2 else None

    def _bound(self, call: relax.Expr | None, operator: tvm.ir.Op, index: int) -> relax.Expr | None:
        """What computes an argument of ``call``, if that is a call of ``operator``."""
        if not isinstance(call, relax.Call) or call.op != operator:
            return None
        argument = call.args[index]
        found = self.lookup_binding(argument) if isinstance(argument, relax.Var) else argument
        return found if isinstance(found, relax.Call) else None
