"""Softmax, variances and other statistics, written out in folds and elementwise arithmetic."""

from __future__ import annotations

from typing import Any

import torch

from planish.codegen.dims import product
from planish.codegen.legalise import Arguments, Decomposition, Legaliser
from planish.ir import Node, Operand
from planish.ir.types import as_dim


def wide(to: Legaliser, x: Operand) -> Operand:
    """16-bit floats as float32: intermediate results of a composition are not rounded to 16 bits."""
    return to.call("to.dtype", x, torch.float32) if x.type.dtype in (torch.float16, torch.bfloat16) else x


def _as_result(to: Legaliser, x: Operand, node: Node) -> Operand:
    dtype = node.outputs[0].type.dtype
    return x if x.type.dtype == dtype else to.call("to.dtype", x, dtype)


def _operand(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    """The input of a softmax, converted as its dtype argument says."""
    x: Operand = arguments["self"]
    dtype = arguments.get("dtype")
    return wide(to, x if dtype is None else to.call("to.dtype", x, dtype))


def _softmax(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, axis = _operand(to, arguments, node), [arguments["dim"]]
    if x.type.rank == 0:
        return to.call("ones_like.default", x)
    powers = to.call("exp.default", to.call("sub.Tensor", x, to.call("amax.default", x, axis, True)))
    total = to.call("sum.dim_IntList", powers, axis, True)
    return _as_result(to, to.call("div.Tensor", powers, total), node)


def _log_softmax(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, axis = _operand(to, arguments, node), [arguments["dim"]]
    if x.type.rank == 0:
        return to.call("zeros_like.default", x)
    centred = to.call("sub.Tensor", x, to.call("amax.default", x, axis, True))
    total = to.call("sum.dim_IntList", to.call("exp.default", centred), axis, True)
    return _as_result(to, to.call("sub.Tensor", centred, to.call("log.default", total)), node)


def _logsumexp(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, axes, keep = wide(to, arguments["self"]), arguments["dim"], arguments["keepdim"]
    peak = to.call("amax.default", x, axes, True)
    # An infinite peak subtracted from itself would give NaN.
    infinite = to.call("isinf.default", peak)
    peak = to.call("where.ScalarSelf", infinite, 0.0, peak)
    total = to.call("sum.dim_IntList", to.call("exp.default", to.call("sub.Tensor", x, peak)), axes, keep)
    peak = peak if keep else to.call("squeeze.dims", peak, axes)
    return _as_result(to, to.call("add.Tensor", to.call("log.default", total), peak), node)


def moments(to: Legaliser, x: Operand, axes: list[int], correction: float = 0) -> tuple[Operand, Operand]:
    """Mean and variance over some axes, which are kept with size 1; the sum of squares is divided by n - correction."""
    mean = to.call("mean.dim", x, axes, True)
    centred = to.call("sub.Tensor", x, mean)
    squares = to.call("sum.dim_IntList", to.call("mul.Tensor", centred, centred), axes, True)
    count = product(x.type.shape[a] for a in axes)
    left: Any = count - correction if isinstance(count, int) else as_dim(count - int(correction))
    return mean, to.call("div.Scalar", squares, max(left, 0) if isinstance(left, (int, float)) else left)


def _variance(to: Legaliser, arguments: Arguments, node: Node) -> list[Operand]:
    """Variance and mean, squeezed unless they keep their axes."""
    x = wide(to, arguments["self"])
    given = arguments.get("dim")
    axes = [a % x.type.rank for a in given] if given else list(range(x.type.rank))
    correction = arguments.get("correction", 1)
    if "unbiased" in arguments:
        correction = 1 if arguments["unbiased"] else 0
    mean, variance = moments(to, x, axes, 1 if correction is None else correction)
    results = [variance, mean]
    if not arguments.get("keepdim", False):
        results = [to.call("squeeze.dims", r, axes) for r in results]
    return [_as_result(to, r, node) for r in results]


def _only_variance(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    return _variance(to, arguments, node)[0]


def _deviation(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    return to.call("sqrt.default", _variance(to, arguments, node)[0])


def _euclidean(to: Legaliser, arguments: Arguments, node: Node) -> Operand | list[Operand]:
    """A vector norm of order 2 or 1."""
    x = wide(to, arguments["self"])
    order = float(arguments["ord"] if "ord" in arguments else arguments["p"] or 2)
    axes = arguments["dim"] if arguments["dim"] else list(range(x.type.rank))
    keep = arguments["keepdim"]
    if order == 1:
        return _as_result(to, to.call("sum.dim_IntList", to.call("abs.default", x), axes, keep), node)
    if order == 2:
        squares = to.call("sum.dim_IntList", to.call("mul.Tensor", x, x), axes, keep)
        return _as_result(to, to.call("sqrt.default", squares), node)
    powers = to.call("pow.Tensor_Scalar", to.call("abs.default", x), order)
    total = to.call("sum.dim_IntList", powers, axes, keep)
    return _as_result(to, to.call("pow.Tensor_Scalar", total, 1 / order), node)


STATISTICS: dict[str, Decomposition] = {
    "softmax.int": _softmax,
    "_softmax.default": _softmax,
    "log_softmax.int": _log_softmax,
    "_log_softmax.default": _log_softmax,
    "logsumexp.default": _logsumexp,
    "var.correction": _only_variance,
    "var.dim": _only_variance,
    "var.default": _only_variance,
    "var_mean.correction": _variance,
    "std.correction": _deviation,
    "std.dim": _deviation,
    "std.default": _deviation,
    "linalg_vector_norm.default": _euclidean,
    "norm.ScalarOpt_dim": _euclidean,
}
