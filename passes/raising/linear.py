"""ATen's linear maps, embeddings and convolutions --> the model operations of the same meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from planish.ir.module import Operand, ParamRef
from planish.ir.op import Chooser
from planish.ir.ops import Conv2d, Embedding, Linear
from planish.ir.types import TensorType
from planish.passes.graph import Graph
from planish.passes.patterns import OneOf, call, op
from planish.passes.raising.draws import F32, choose_shape, small_integers
from planish.passes.rewrite import Match, Replacement, Rule, pattern_rule


def _bias(match: Match) -> Operand | None:
    bias: Operand | None = match.captures.get("bias")
    return bias


def _draw_linear(choose: Chooser) -> Mapping[str, Any]:
    inner, outer = choose.integer(2, 6), choose.integer(2, 6)
    return {
        "x": choose_shape(choose, inner),
        "weight": small_integers(choose, outer, inner),
        "bias": small_integers(choose, outer),
    }


LINEAR = pattern_rule(
    "linear",
    lambda x, weight, bias: call("linear.default", x, weight, OneOf((bias, None))),
    lambda to, match: to.emit(Linear(), match["x"], match["weight"], _bias(match)),
    _draw_linear,
)


def _draw_product(choose: Chooser) -> Mapping[str, Any]:
    inner, outer = choose.integer(2, 6), choose.integer(2, 6)
    rows = choose.integer(2, 5)
    return {
        "x": TensorType(F32, (rows, inner)),
        "weight": small_integers(choose, inner, outer),
        "bias": small_integers(choose, outer),
    }


def _is_weight(match: Match, graph: Graph) -> str | None:
    kind = match["weight"].type
    return None if kind.rank == 2 else f"the right factor {kind} is no matrix"


# x @ w + b with w stored [in, out], the transpose of a linear layer's weight.
ADDMM = pattern_rule(
    "addmm",
    lambda x, weight, bias: call("addmm.default", bias, x, weight),
    lambda to, match: to.emit(Linear(), match["x"], to.call("t.default", self=match["weight"]), match["bias"]),
    _draw_product,
    lambda match, graph: None if match["bias"].type.rank == 1 else "the added term is not one vector",
)

MATMUL = pattern_rule(
    "matmul of a transposed weight",
    lambda x, weight: call("matmul.default", x, call("t.default", weight)),
    lambda to, match: to.emit(Linear(), match["x"], match["weight"], None),
    lambda choose: {k: v for k, v in _draw_linear(choose).items() if k != "bias"},
    _is_weight,
)


def _is_param(match: Match, graph: Graph) -> str | None:
    return None if isinstance(match["weight"], ParamRef) else "its right factor is computed, not a weight"


def _without_bias(choose: Chooser) -> Mapping[str, Any]:
    return {k: v for k, v in _draw_product(choose).items() if k != "bias"}


MM = pattern_rule(
    "product with a weight stored [in, out]",
    lambda x, weight: call("mm.default", x, weight),
    lambda to, match: to.emit(Linear(), match["x"], to.call("t.default", self=match["weight"]), None),
    _without_bias,
    _is_param,
)


def _bias_fits(match: Match, graph: Graph) -> str | None:
    bias, x = match["bias"], match["x"].type
    fits = isinstance(bias, ParamRef) and bias.type == TensorType(x.dtype, match.outputs[0].type.shape[-1:])
    return None if fits else f"the added {bias.type} is no bias"


BIAS = pattern_rule(
    "bias of a linear map",
    lambda x, weight, bias: call("add.Tensor", op(Linear, x, weight, None), bias),
    lambda to, match: to.emit(Linear(), match["x"], match["weight"], match["bias"]),
    _draw_linear,
    _bias_fits,
)


def _draw_embedding(choose: Chooser) -> Mapping[str, Any]:
    ids = TensorType(torch.int64, tuple(choose.integer(1, 4) for _ in range(choose.integer(1, 2))))
    table = small_integers(choose, choose.integer(2, 6), choose.integer(1, 5))
    # What marks padding in training changes nothing in the forward.
    return {"ids": ids, "table": table, "padding": choose.choice([-1, 0])}


EMBEDDING = pattern_rule(
    "embedding",
    lambda ids, table, *, padding: call("embedding.default", table, ids, padding),
    lambda to, match: to.emit(Embedding(), match["ids"], match["table"]),
    _draw_embedding,
)


def _draw_conv(choose: Chooser) -> Mapping[str, Any]:
    groups = choose.integer(1, 2)
    ins, outs = groups * choose.integer(1, 3), groups * choose.integer(1, 3)
    weight = small_integers(choose, outs, ins // groups, choose.integer(1, 3), choose.integer(1, 3))
    return {
        "x": TensorType(F32, (choose.integer(1, 2), ins, choose.integer(5, 7), choose.integer(5, 7))),
        "weight": weight,
        "bias": small_integers(choose, outs),
        "stride": (choose.integer(1, 2), choose.integer(1, 2)),
        "padding": (choose.integer(0, 2), choose.integer(0, 1)),
        "dilation": (choose.integer(1, 2), choose.integer(1, 2)),
        "groups": groups,
    }


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _conv2d(to: Replacement, match: Match) -> Operand:
    sizes = {name: _pair(match[name]) for name in ("stride", "padding", "dilation")}
    return to.emit(Conv2d(groups=match["groups"], **sizes), match["x"], match["weight"], _bias(match))


def _conv_left(x: Any, weight: Any, bias: Any, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    return call("conv2d.default", x, weight, OneOf((bias, None)), stride, padding, dilation, groups)


CONV2D = pattern_rule("conv2d", _conv_left, _conv2d, _draw_conv)

RULES: tuple[Rule, ...] = (LINEAR, ADDMM, MATMUL, MM, BIAS, EMBEDDING, CONV2D)
