"""Legal calls of every ATen operator that has an axis rule, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from planish.ir.op import Chooser
from planish.ir.ops.sampling import choose_float, choose_leading
from planish.ir.types import TensorType

# positional arguments with operand types in place of tensors, keywords
Call: TypeAlias = "tuple[list[Any], dict[str, Any]]"
AtenSampler: TypeAlias = Callable[[Chooser], Call]


def _shape(choose: Chooser, rank: int) -> tuple[int, ...]:
    """Exactly `rank` axes of asymmetric small sizes."""
    return tuple(choose.integer(1, 5) for _ in range(rank))


def _float(choose: Chooser) -> TensorType:
    return TensorType(choose_float(choose), choose_leading(choose))


def _broadcast(choose: Chooser, x: TensorType) -> TensorType:
    """A type that broadcasts against `x`: some axes of size 1, some leading axes left out."""
    shape = [d if choose.boolean() else 1 for d in x.shape]
    return x.with_shape(shape[choose.integer(0, len(shape)) :])


def _of_dtypes(*dtypes: torch.dtype) -> Callable[[Chooser], TensorType]:
    return lambda choose: TensorType(choose.choice(list(dtypes)), choose_leading(choose))


_any_int = _of_dtypes(torch.int64, torch.int32, torch.bool)
_bool = _of_dtypes(torch.bool)


def _unary(
    *after: Any, draw: Callable[[Chooser], TensorType] = _float, before: tuple[Any, ...] = (), **keywords: Any
) -> AtenSampler:
    return lambda choose: ([*before, draw(choose), *after], keywords)


def _binary(draw: Callable[[Chooser], TensorType] = _float, **keywords: Any) -> AtenSampler:
    def sampler(choose: Chooser) -> Call:
        x = draw(choose)
        operands = [x, _broadcast(choose, x)]
        return (operands if choose.boolean() else operands[::-1]), keywords

    return sampler


def _where(choose: Chooser) -> Call:
    x = _float(choose)
    return [x.with_dtype(torch.bool), x, _broadcast(choose, x)], {}


def _masked_fill(value: Any) -> AtenSampler:
    def sampler(choose: Chooser) -> Call:
        x = _float(choose)
        filled = TensorType(x.dtype, ()) if value is None else value
        return [x, _broadcast(choose, x).with_dtype(torch.bool), filled], {}

    return sampler


def _merged(choose: Chooser) -> Call:
    """A reshape that merges two neighbouring axes, or splits an axis in two."""
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(2, 4)))
    at = choose.integer(0, x.rank - 2)
    sizes = x.concrete({})
    merged = (*sizes[:at], sizes[at] * sizes[at + 1], *sizes[at + 2 :])
    return ([x, merged], {}) if choose.boolean() else ([x.with_shape(merged), sizes], {})


def _flatten(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(2, 4)))
    first = choose.integer(0, x.rank - 2)
    return [x, first, choose.integer(first + 1, x.rank - 1)], {}


def _unflatten(choose: Chooser) -> Call:
    parts = _shape(choose, 2)
    x = TensorType(choose_float(choose), (*choose_leading(choose), parts[0] * parts[1]))
    return [x, -1, parts], {}


def _squeeze(argument: Callable[[int], tuple[Any, ...]]) -> AtenSampler:
    def sampler(choose: Chooser) -> Call:
        leading, trailing = choose_leading(choose), choose_leading(choose)
        return [TensorType(choose_float(choose), (*leading, 1, *trailing)), *argument(len(leading))], {}

    return sampler


def _expand(choose: Chooser) -> Call:
    x = _float(choose)
    wide = _shape(choose, x.rank)
    kept = [choose.boolean() for _ in wide]
    shape = [d if keep else 1 for d, keep in zip(wide, kept)]
    return [x.with_shape(shape), (*choose_leading(choose), *wide)], {}


def _with_axis(*after: Any, least: int = 1, keyword: str | None = None) -> AtenSampler:
    """A tensor and one of its axes, counted from either end."""

    def sampler(choose: Chooser) -> Call:
        x = TensorType(choose_float(choose), _shape(choose, choose.integer(least, 4)))
        axis = choose.integer(-x.rank, x.rank - 1)
        return ([x, *after], {keyword: axis}) if keyword else ([x, axis, *after], {})

    return sampler


def _index_select(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(1, 4)))
    index = TensorType(torch.int64, (choose.integer(1, 4),))
    return [x, choose.integer(-x.rank, x.rank - 1), index], {}


def _pad(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(1, 4)))
    pads = tuple(choose.integer(0, 2) for _ in range(2 * choose.integer(1, x.rank)))
    return [x, pads, choose.choice([0.0, -1.5])], {}


def _repeat_interleave(choose: Chooser) -> Call:
    """Along an axis, or, as without one, over all elements in a row."""
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(1, 4)))
    axis = choose.integer(-x.rank, x.rank - 1) if choose.boolean() else None
    return [x, choose.integer(1, 3), axis], {}


def _reduction(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(1, 4)))
    axes = tuple(a for a in range(x.rank) if choose.boolean()) or (0,)
    return [x, axes, choose.boolean()], {}


def _variance(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), (*_shape(choose, 2), choose.integer(2, 5)))
    return [x, (-1,)], {"correction": choose.integer(0, 1), "keepdim": choose.boolean()}


def _permute(choose: Chooser) -> Call:
    x = _float(choose)
    left, order = list(range(x.rank)), []
    while left:
        order.append(left.pop(choose.integer(0, len(left) - 1)))
    return [x, tuple(order)], {}


def _transpose(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(2, 4)))
    return [x, choose.integer(-x.rank, x.rank - 1), choose.integer(0, x.rank - 1)], {}


def _slice(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(1, 4)))
    axis = choose.integer(0, x.rank - 1)
    start = choose.integer(0, x.concrete({})[axis] - 1)
    return [x, axis, start, choose.integer(start + 1, 6), choose.integer(1, 2)], {}


def _select(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(1, 4)))
    axis = choose.integer(-x.rank, x.rank - 1)
    return [x, axis, choose.integer(0, x.concrete({})[axis] - 1)], {}


def _split_with_sizes(choose: Chooser) -> Call:
    sizes = _shape(choose, choose.integer(1, 3))
    leading = choose_leading(choose)
    x = TensorType(choose_float(choose), (*leading, sum(sizes), *choose_leading(choose)))
    return [x, sizes, len(leading)], {}


def _cat(choose: Chooser) -> Call:
    x = TensorType(choose_float(choose), _shape(choose, choose.integer(1, 4)))
    axis = choose.integer(-x.rank, x.rank - 1)
    shapes = [list(x.shape) for _ in range(choose.integer(1, 3))]
    for shape in shapes:
        shape[axis] = choose.integer(1, 4)
    return [tuple(x.with_shape(s) for s in shapes), axis], {}


def _stack(choose: Chooser) -> Call:
    x = _float(choose)
    return [(x,) * choose.integer(1, 3), choose.integer(-x.rank - 1, x.rank)], {}


def _matmul(ranks: tuple[int, int] | None) -> AtenSampler:
    def sampler(choose: Chooser) -> Call:
        dtype, (m, k, n) = choose_float(choose), _shape(choose, 3)
        leading = choose_leading(choose) if ranks is None else _shape(choose, ranks[0] - 2)
        other = leading
        if ranks is None:
            other = tuple(d if choose.boolean() else 1 for d in leading)[choose.integer(0, len(leading)) :]
        return [TensorType(dtype, (*leading, m, k)), TensorType(dtype, (*other, k, n))], {}

    return sampler


def _type_as(choose: Chooser) -> Call:
    return [_float(choose), TensorType(choose_float(choose), ())], {}


_UNARY = (
    "neg abs relu exp log sqrt rsqrt reciprocal square sin cos tanh sigmoid erf silu gelu softplus leaky_relu elu "
    "hardtanh hardswish hardsigmoid floor ceil round sign isnan isinf logical_not clone contiguous alias detach "
    "zeros_like ones_like"
).split()
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")

ATEN_SAMPLES: dict[str, AtenSampler] = {
    **{f"{name}.default": _unary() for name in _UNARY},
    **{f"{name}.Tensor": _binary() for name in ("add", "sub", "mul", "div", "remainder", *_COMPARISONS)},
    **{f"{name}.Scalar": _unary(2) for name in ("add", "sub", "rsub", "mul", "div", "remainder", *_COMPARISONS)},
    **{f"{name}.default": _binary() for name in ("maximum", "minimum", "floor_divide")},
    **{f"logical_{name}.default": _binary(_bool) for name in ("and", "or")},
    **{f"bitwise_{name}.Tensor": _binary(_any_int) for name in ("and", "or")},
    "bitwise_not.default": _unary(draw=_any_int),
    "pow.Tensor_Scalar": _unary(2),
    "pow.Tensor_Tensor": _binary(),
    "pow.Scalar": _unary(before=(2.0,)),
    "div.Tensor_mode": _binary(rounding_mode="floor"),
    "div.Scalar_mode": _unary(2.0, rounding_mode="trunc"),
    "clamp.default": _unary(-1.0, 1.5),
    "clamp_min.default": _unary(0.5),
    "clamp_max.default": _unary(0.5),
    "full_like.default": _unary(0.5),
    "where.self": _where,
    "where.ScalarSelf": lambda choose: ([_bool(choose), 1.5, TensorType(choose_float(choose), ())], {}),
    "where.ScalarOther": lambda choose: ([(x := _float(choose)).with_dtype(torch.bool), x, 1.5], {}),
    "masked_fill.Scalar": _masked_fill(-1.5),
    "masked_fill.Tensor": _masked_fill(None),
    "to.dtype": lambda choose: ([_float(choose), choose_float(choose)], {}),
    "_to_copy.default": lambda choose: ([_float(choose)], {"dtype": choose_float(choose)}),
    "type_as.default": _type_as,
    "view.default": _merged,
    "reshape.default": _merged,
    "_unsafe_view.default": _merged,
    "flatten.using_ints": _flatten,
    "unflatten.int": _unflatten,
    "unsqueeze.default": lambda choose: ([x := _float(choose), choose.integer(-x.rank - 1, x.rank)], {}),
    "squeeze.default": _squeeze(lambda axis: ()),
    "squeeze.dim": _squeeze(lambda axis: (axis,)),
    "squeeze.dims": _squeeze(lambda axis: ((axis,),)),
    "expand.default": _expand,
    "transpose.int": _transpose,
    "t.default": lambda choose: ([TensorType(choose_float(choose), _shape(choose, choose.integer(0, 2)))], {}),
    "permute.default": _permute,
    "softmax.int": _with_axis(),
    "_softmax.default": _with_axis(False),
    "log_softmax.int": _with_axis(),
    "cumsum.default": _with_axis(),
    "slice.Tensor": _slice,
    "index_select.default": _index_select,
    "constant_pad_nd.default": _pad,
    "repeat_interleave.self_int": _repeat_interleave,
    "flip.default": lambda choose: ([TensorType(choose_float(choose), _shape(choose, 3)), (0, -1)], {}),
    "sum.dim_IntList": _reduction,
    "mean.dim": _reduction,
    "amax.default": _reduction,
    "amin.default": _reduction,
    "var.correction": _variance,
    "select.int": _select,
    "split.Tensor": _with_axis(2, keyword="dim"),
    "split_with_sizes.default": _split_with_sizes,
    "chunk.default": _with_axis(2, keyword="dim"),
    "cat.default": _cat,
    "stack.default": _stack,
    "matmul.default": _matmul(None),
    "bmm.default": _matmul((3, 3)),
    "mm.default": _matmul((2, 2)),
}
