"""Activation functions, element by element, in the dtype of their result."""

from __future__ import annotations

import math

import torch
from tvm.tirx.script import builder as T

from planish.codegen.aten.scalars import aligned, elementwise, extremum, number
from planish.codegen.dims import Expr
from planish.codegen.math import hold
from planish.codegen.pointwise.dtypes import literal, rounded
from planish.codegen.pointwise.elementary import elementary
from planish.codegen.pointwise.expression import At, Call, Indices, Pointwise, Rule


def _gelu(call: Call) -> list[At]:
    dtype, approximate = call.result.dtype, call.keywords.get("approximate", "none")

    def at(indices: Indices) -> Expr:
        x = hold(call.value(call.arguments[0], dtype, indices))
        if approximate == "none":
            return rounded(x * elementary("normal_cdf", x), dtype)
        inner = number(math.sqrt(2 / math.pi), dtype) * (x + number(0.044715, dtype) * (x * x * x))
        bent = elementary("tanh", hold(inner))
        return rounded(number(0.5, dtype) * x * (number(1, dtype) + bent), dtype)

    return [at]


def _softplus(call: Call) -> list[At]:
    dtype = call.result.dtype
    beta, threshold = call.argument(1, "beta", 1), call.argument(2, "threshold", 20)

    def at(indices: Indices) -> Expr:
        x = hold(call.value(call.arguments[0], dtype, indices))
        scaled = hold(x * number(beta, dtype))
        bent = elementary("log1p", elementary("exp", scaled)) / number(beta, dtype)
        return rounded(T.Select(scaled > number(threshold, dtype), x, bent), dtype)

    return [at]


def _elu(call: Call) -> list[At]:
    dtype = call.result.dtype
    alpha, scale, input_scale = (call.argument(n, k, 1) for n, k in ((1, "alpha"), (2, "scale"), (3, "input_scale")))

    def at(indices: Indices) -> Expr:
        x = hold(call.value(call.arguments[0], dtype, indices))
        negative = elementary("expm1", x * number(input_scale, dtype)) * number(alpha * scale, dtype)
        return rounded(T.Select(x > number(0, dtype), x * number(scale, dtype), negative), dtype)

    return [at]


def _leaky_relu(call: Call) -> list[At]:
    dtype, slope = call.result.dtype, call.argument(1, "negative_slope", 0.01)

    def at(indices: Indices) -> Expr:
        x = hold(call.value(call.arguments[0], dtype, indices))
        return rounded(T.Select(x > number(0, dtype), x, x * number(slope, dtype)), dtype)

    return [at]


def _clamp(low: tuple[int, str] | float | None, high: tuple[int, str] | float | None) -> Rule:
    """Bounds are constants, or the position and name of the argument that brings them (which may be absent)."""

    def rule(call: Call) -> list[At]:
        dtype = call.result.dtype
        bounds = [call.argument(*b) if isinstance(b, tuple) else b for b in (low, high)]

        def at(indices: Indices) -> Expr:
            x = hold(call.value(call.arguments[0], dtype, indices))
            for larger, bound in zip((True, False), bounds):
                if bound is not None:
                    x = hold(extremum(larger, x, call.value(bound, dtype, indices), dtype))
            return x

        return [at]

    return rule


def _hard_sigmoid(x: Expr, dtype: torch.dtype) -> Expr:
    six = number(6, dtype)
    return T.min(T.max(x + number(3, dtype), number(0, dtype)), six) / six


def _mish(x: Expr, dtype: torch.dtype) -> Expr:
    return x * elementary("tanh", hold(elementary("log1p", elementary("exp", x))))


_BOTH = aligned(_clamp((1, "min"), (2, "max")))

ACTIVATIONS: dict[str, Pointwise] = {
    "relu.default": elementwise(lambda x, dtype: extremum(True, x, literal(0, dtype), dtype), 1),
    "relu6.default": aligned(_clamp(0.0, 6.0)),
    "silu.default": elementwise(lambda x, dtype: x * elementary("sigmoid", x), 1),
    "gelu.default": aligned(_gelu),
    "mish.default": elementwise(_mish, 1),
    "softplus.default": aligned(_softplus),
    "elu.default": aligned(_elu),
    "leaky_relu.default": aligned(_leaky_relu),
    "hardtanh.default": Pointwise(
        lambda call: _clamp(call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0))(call), aligned=True
    ),
    "hardsigmoid.default": elementwise(_hard_sigmoid, 1),
    "hardswish.default": elementwise(lambda x, dtype: x * _hard_sigmoid(x, dtype), 1),
    "clamp.default": _BOTH,
    "clamp.Tensor": _BOTH,
    "clamp_min.default": aligned(_clamp((1, "min"), None)),
    "clamp_min.Tensor": aligned(_clamp((1, "min"), None)),
    "clamp_max.default": aligned(_clamp(None, (1, "max"))),
    "clamp_max.Tensor": aligned(_clamp(None, (1, "max"))),
}
