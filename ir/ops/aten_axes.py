"""Axis rules of the ATen operators that occur in traced models. What is not listed is a barrier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from planish.ir.axes import AxisRule, AxisTie, broadcast_ties, reshape_ties
from planish.ir.types import TensorType, same_dim

# arguments and keywords with operand numbers in place of tensors, operand types, result types -> the rule
AtenAxes: TypeAlias = Callable[
    [list[Any], dict[str, Any], tuple[TensorType | None, ...], tuple[TensorType, ...]], AxisRule | None
]
Types: TypeAlias = "tuple[TensorType | None, ...]"


def _present(operand: TensorType | None) -> TensorType:
    assert operand is not None
    return operand


def _elementwise(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    return broadcast_ties(operands, results[0])


def _reshape(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    return reshape_ties(_present(operands[0]), results[0])


def _expand(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    return broadcast_ties(operands[:1], results[0])


def _permuted(order: Callable[[list[Any], int], list[int]]) -> AtenAxes:
    def rule(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
        axes = order(arguments, _present(operands[0]).rank)
        return AxisRule(tuple(AxisTie(0, axis, 0, result_axis) for result_axis, axis in enumerate(axes)))

    return rule


def transpose_order(arguments: list[Any], rank: int) -> list[int]:
    order = list(range(rank))
    a, b = arguments[1] % rank, arguments[2] % rank
    order[a], order[b] = order[b], order[a]
    return order


def _over_other_axes(axis_argument: int, default: Any) -> AtenAxes:
    """Operators that mix some axes and keep their sizes in place: softmax, cumsum, slice, flip."""

    def rule(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
        x = _present(operands[0])
        given = arguments[axis_argument] if len(arguments) > axis_argument else keywords.get("dim", default)
        mixed = {axis % x.rank for axis in (given if isinstance(given, list) else [given])}
        return AxisRule(tuple(AxisTie(0, axis, 0, axis) for axis in range(x.rank) if axis not in mixed))

    return rule


def _repeat_interleave(
    arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any
) -> AxisRule | None:
    axis = arguments[2] if len(arguments) > 2 else keywords.get("dim")
    return None if axis is None else _over_other_axes(2, axis)(arguments, keywords, operands, results)


def _reduction(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    x = _present(operands[0])
    given = arguments[1] if len(arguments) > 1 else keywords.get("dim")
    if given is None or given == []:
        return AxisRule(())
    reduced = {axis % x.rank for axis in (given if isinstance(given, list) else [given])}
    keep = arguments[2] if len(arguments) > 2 else keywords.get("keepdim", False)
    ties, result_axis = [], 0
    for axis in range(x.rank):
        if axis not in reduced:
            ties.append(AxisTie(0, axis, 0, result_axis))
        result_axis += int(bool(keep) or axis not in reduced)
    return AxisRule(tuple(ties))


def _select(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    x = _present(operands[0])
    gone = arguments[1] % x.rank
    kept = [axis for axis in range(x.rank) if axis != gone]
    return AxisRule(tuple(AxisTie(0, axis, 0, n) for n, axis in enumerate(kept)))


def _split(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    x = _present(operands[0])
    axis = (arguments[2] if len(arguments) > 2 else keywords.get("dim", 0)) % x.rank
    return AxisRule(tuple(AxisTie(0, a, r, a) for r in range(len(results)) for a in range(x.rank) if a != axis))


def _cat(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    rank = results[0].rank
    axis = (arguments[1] if len(arguments) > 1 else keywords.get("dim", 0)) % rank
    return AxisRule(tuple(AxisTie(n, a, 0, a) for n in range(len(operands)) for a in range(rank) if a != axis))


def padded_axes(arguments: list[Any], rank: int) -> dict[int, tuple[Any, Any]]:
    """What a padding puts before and behind an axis, for those that get something: pairs from the last axis on."""
    pads = list(arguments[1])
    pairs = {rank - 1 - n: (pads[2 * n], pads[2 * n + 1]) for n in range(len(pads) // 2)}
    return {axis: pair for axis, pair in pairs.items() if any(not same_dim(pad, 0) for pad in pair)}


def _pad(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    x = _present(operands[0])
    return AxisRule(tuple(AxisTie(0, a, 0, a) for a in range(x.rank) if a not in padded_axes(arguments, x.rank)))


def _stack(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule:
    rank = results[0].rank
    axis = (arguments[1] if len(arguments) > 1 else keywords.get("dim", 0)) % rank
    kept = [a for a in range(rank) if a != axis]
    return AxisRule(tuple(AxisTie(n, a, 0, r) for n in range(len(operands)) for a, r in enumerate(kept)))


def _matmul(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> AxisRule | None:
    a, b, result = _present(operands[0]), _present(operands[1]), results[0]
    if a.rank < 2 or b.rank < 2:
        return None
    ties = [AxisTie(0, a.rank - 2, 0, result.rank - 2), AxisTie(1, b.rank - 1, 0, result.rank - 1)]
    for number, operand in ((0, a), (1, b)):
        offset = result.rank - operand.rank
        for axis in range(operand.rank - 2):
            if same_dim(operand.shape[axis], result.shape[axis + offset]):
                ties.append(AxisTie(number, axis, 0, axis + offset))
    return AxisRule(tuple(ties))


ELEMENTWISE = frozenset((
    "abs.default add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar mul.Tensor mul.Scalar div.Tensor "
    "div.Scalar pow.Tensor_Scalar pow.Scalar pow.Tensor_Tensor neg.default exp.default log.default "
    "sqrt.default rsqrt.default reciprocal.default square.default sin.default cos.default tanh.default "
    "sigmoid.default erf.default relu.default silu.default gelu.default softplus.default clamp.default "
    "clamp_min.default clamp_max.default leaky_relu.default elu.default hardtanh.default "
    "hardswish.default hardsigmoid.default maximum.default minimum.default where.self where.ScalarSelf "
    "where.ScalarOther masked_fill.Scalar masked_fill.Tensor eq.Tensor eq.Scalar ne.Tensor ne.Scalar "
    "lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_not.default "
    "logical_and.default logical_or.default bitwise_and.Tensor bitwise_or.Tensor bitwise_not.default "
    "floor.default ceil.default round.default sign.default isnan.default isinf.default "
    "floor_divide.default remainder.Scalar remainder.Tensor div.Tensor_mode div.Scalar_mode to.dtype "
    "_to_copy.default clone.default contiguous.default alias.default detach.default type_as.default "
    "full_like.default zeros_like.default ones_like.default "
).split())  # fmt: skip

ATEN_AXES: dict[str, AtenAxes] = {
    **dict.fromkeys(sorted(ELEMENTWISE), _elementwise),
    "view.default": _reshape,
    "reshape.default": _reshape,
    "_unsafe_view.default": _reshape,
    "flatten.using_ints": _reshape,
    "unflatten.int": _reshape,
    "unsqueeze.default": _reshape,
    "squeeze.default": _reshape,
    "squeeze.dim": _reshape,
    "squeeze.dims": _reshape,
    "expand.default": _expand,
    "transpose.int": _permuted(transpose_order),
    "t.default": _permuted(lambda arguments, rank: list(reversed(range(rank)))),
    "permute.default": _permuted(lambda arguments, rank: [a % rank for a in arguments[1]]),
    "softmax.int": _over_other_axes(1, -1),
    "_softmax.default": _over_other_axes(1, -1),
    "log_softmax.int": _over_other_axes(1, -1),
    "cumsum.default": _over_other_axes(1, -1),
    "slice.Tensor": _over_other_axes(1, 0),
    "flip.default": _over_other_axes(1, -1),
    "index_select.default": _over_other_axes(1, 0),
    "constant_pad_nd.default": _pad,
    "repeat_interleave.self_int": _repeat_interleave,
    "sum.dim_IntList": _reduction,
    "mean.dim": _reduction,
    "amax.default": _reduction,
    "amin.default": _reduction,
    "var.correction": _reduction,
    "select.int": _select,
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "chunk.default": _split,
    "cat.default": _cat,
    "stack.default": _stack,
    "matmul.default": _matmul,
    "bmm.default": _matmul,
    "mm.default": _matmul,
}
