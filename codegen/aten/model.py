"""Model operations that are computed element by element, and so fuse with their neighbours."""

from __future__ import annotations

import math

import torch
from tvm.tirx.script import builder as T

from planish.codegen.aten.scalars import extremum, number
from planish.codegen.dims import Expr
from planish.codegen.math import hold
from planish.codegen.pointwise.dtypes import rounded
from planish.codegen.pointwise.elementary import elementary
from planish.codegen.pointwise.expression import At, Call, Indices, Pointwise


def _last_token(call: Call) -> list[At]:
    x, length = call.arguments

    def at(indices: Indices) -> Expr:
        return x.at((indices[0], length.at((indices[0],)) - 1, *indices[2:]))

    return [at]


def _embedding(call: Call) -> list[At]:
    ids, table = call.arguments
    return [lambda indices: table.at((T.cast(ids.at(indices[:-1]), "int64"), indices[-1]))]


def _positions(call: Call) -> list[At]:
    """Without padding: the index of the token, counted from its row's start."""
    start, _ = call.arguments
    if start is None:
        return [lambda indices: indices[1]]
    return [lambda indices: start.at((indices[0],)) + indices[1]]


def activation(name: str, x: Expr, dtype: torch.dtype) -> Expr:
    """The activation of that name of a value in the compute dtype of `dtype`."""
    if name == "relu":
        return extremum(True, x, number(0, dtype), dtype)
    if name == "silu":
        return x * elementary("sigmoid", x)
    if name == "gelu":
        return x * elementary("normal_cdf", x)
    inner = number(math.sqrt(2 / math.pi), dtype) * (x + number(0.044715, dtype) * (x * x * x))
    return number(0.5, dtype) * x * (number(1, dtype) + elementary("tanh", hold(inner)))


def _gated(call: Call) -> list[At]:
    gate, up = call.arguments
    dtype, half = call.result.dtype, call.result.shape[-1]

    def at(indices: Indices) -> Expr:
        other = up.at(indices) if up is not None else gate.at((*indices[:-1], indices[-1] + call.size(half)))
        value = hold(gate.at(indices))
        return rounded(activation(call.keywords["activation"], value, dtype) * other, dtype)

    return [at]


MODEL: dict[str, Pointwise] = {
    "last_token": Pointwise(_last_token, whole=(0,), cheap=True),
    "embedding": Pointwise(_embedding, whole=(1,)),
    "positions": Pointwise(_positions, cheap=True),
    "gated_activation": Pointwise(_gated),
}
