"""ATen operators that make tensors from numbers: constants, ranges, identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr
from planish.codegen.pointwise.dtypes import convert, literal
from planish.codegen.pointwise.expression import At, Call, Indices, Pointwise, Rule


def _filled(value_of: Callable[[Call], Any]) -> Pointwise:
    def rule(call: Call) -> list[At]:
        value = value_of(call)
        return [lambda indices: call.value(value, call.result.dtype, indices)]

    return Pointwise(rule, aligned=True, cheap=True)


def _arange(start: int, step: int) -> Rule:
    """`start` and `step` are the positions of these arguments, -1 for their defaults 0 and 1."""

    def rule(call: Call) -> list[At]:
        begin = call.arguments[start] if start >= 0 else 0
        by = call.argument(step, "step", 1) if step >= 0 else 1
        dtype = call.result.dtype

        def at(indices: Indices) -> Expr:
            if dtype.is_floating_point:
                # torch computes the ramp in float64 when the result is float32 too.
                wide = T.cast(indices[0], "float64") * literal(by, torch.float64) + literal(begin, torch.float64)
                return convert(wide, torch.float64, dtype)
            ramp = indices[0] if by == 1 else indices[0] * call.size(by)
            return convert(ramp if begin == 0 else ramp + call.size(begin), torch.int64, dtype)

        return [at]

    return rule


def _eye(call: Call) -> list[At]:
    dtype = call.result.dtype
    return [lambda indices: T.Select(T.EQ(indices[0], indices[1]), literal(1, dtype), literal(0, dtype))]


CREATION: dict[str, Pointwise] = {
    "full.default": _filled(lambda call: call.arguments[1]),
    "full_like.default": _filled(lambda call: call.arguments[1]),
    "new_full.default": _filled(lambda call: call.arguments[2]),
    "zeros.default": _filled(lambda call: 0),
    "zeros_like.default": _filled(lambda call: 0),
    "new_zeros.default": _filled(lambda call: 0),
    "ones.default": _filled(lambda call: 1),
    "ones_like.default": _filled(lambda call: 1),
    "new_ones.default": _filled(lambda call: 1),
    "scalar_tensor.default": _filled(lambda call: call.arguments[0]),
    "arange.default": Pointwise(_arange(-1, -1), cheap=True),
    "arange.start": Pointwise(_arange(0, -1), cheap=True),
    "arange.start_step": Pointwise(_arange(0, 2), cheap=True),
    "eye.default": Pointwise(_eye, cheap=True),
    "eye.m": Pointwise(_eye, cheap=True),
}
