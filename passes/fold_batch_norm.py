"""Batch norms with running statistics, folded into the convolution or linear map in front of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from planish.ir.module import Operand, ParamRef
from planish.ir.op import Chooser, Op
from planish.ir.ops import Conv2d, Linear
from planish.ir.types import TensorType
from planish.passes.graph import Graph
from planish.passes.pass_base import Context
from planish.passes.patterns import OneOf, Term, call, op
from planish.passes.raising.draws import F32, small_integers
from planish.passes.rewrite import Match, Replacement, RewritePass, Rule, pattern_rule

CONSTANTS = ("weight", "bias", "gain", "shift", "mean", "variance")


def _norm(x: Term, gain: Any, shift: Any, mean: Any, variance: Any, momentum: Any, eps: Any, cudnn: Any) -> Term:
    affine = (OneOf((gain, None)), OneOf((shift, None)))
    return call("batch_norm.default", x, *affine, mean, variance, False, momentum, eps, cudnn)


def _refuse(match: Match, graph: Graph) -> str | None:
    operands = {name: match[name] for name in CONSTANTS if name in match.captures}
    computed = next((name for name, o in operands.items() if not isinstance(o, ParamRef)), None)
    if computed is not None:
        return f"the {computed} is computed at run time"
    dtypes = {o.type.dtype for o in operands.values()}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        return "the scaled weights would be rounded once more, to fewer than 32 bits"
    return None


def _folded(to: Replacement, match: Match, layer: Op) -> Operand:
    """(W x + b - mean) * scale + shift, with scale = gain / sqrt(variance + eps), as one layer."""
    given = match.captures
    scale: Operand = to.call("rsqrt.default", self=to.call("add.Scalar", self=given["variance"], other=given["eps"]))
    if "gain" in given:
        scale = to.call("mul.Tensor", self=given["gain"], other=scale)
    column = [-1, *[1] * (given["weight"].type.rank - 1)]
    weight = to.call("mul.Tensor", self=given["weight"], other=to.call("view.default", self=scale, size=column))
    centre = (
        to.call("sub.Tensor", self=given["bias"], other=given["mean"])
        if "bias" in given
        else to.call("neg.default", self=given["mean"])
    )
    bias = to.call("mul.Tensor", self=centre, other=scale)
    if "shift" in given:
        bias = to.call("add.Tensor", self=bias, other=given["shift"])
    return to.emit(layer, match["x"], weight, bias)


def _draw_norm(choose: Chooser, channels: int) -> Mapping[str, Any]:
    return {
        "bias": small_integers(choose, channels),
        "gain": small_integers(choose, channels),
        "shift": small_integers(choose, channels),
        "mean": small_integers(choose, channels),
        "variance": small_integers(choose, channels).abs() + 0.5,
        "momentum": 0.1,
        "eps": choose.choice([1e-5, 0.25]),
        "cudnn": choose.boolean(),
    }


def _after_conv(
    x: Any, weight: Any, bias: Any, gain: Any, shift: Any, mean: Any, variance: Any,
    *, momentum: Any, eps: Any, cudnn: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
) -> Term:  # fmt: skip
    layer = op(Conv2d, x, weight, OneOf((bias, None)), stride=stride, padding=padding, dilation=dilation, groups=groups)
    return _norm(layer, gain, shift, mean, variance, momentum, eps, cudnn)


def _draw_conv(choose: Chooser) -> Mapping[str, Any]:
    groups = choose.integer(1, 2)
    ins, outs = groups * choose.integer(1, 3), groups * choose.integer(1, 3)
    return {
        "x": TensorType(F32, (choose.integer(1, 2), ins, choose.integer(5, 7), choose.integer(5, 7))),
        "weight": small_integers(choose, outs, ins // groups, choose.integer(1, 3), choose.integer(1, 3)),
        "stride": (choose.integer(1, 2), choose.integer(1, 2)),
        "padding": (choose.integer(0, 2), choose.integer(0, 1)),
        "dilation": (choose.integer(1, 2), choose.integer(1, 2)),
        "groups": groups,
        **_draw_norm(choose, outs),
    }


CONVOLUTION = pattern_rule(
    "batch norm after a convolution",
    _after_conv,
    lambda to, match: _folded(
        to, match, Conv2d(**{name: match[name] for name in ("stride", "padding", "dilation", "groups")})
    ),
    _draw_conv,
    _refuse,
)


def _after_linear(
    x: Any, weight: Any, bias: Any, gain: Any, shift: Any, mean: Any, variance: Any,
    *, momentum: Any, eps: Any, cudnn: Any,
) -> Term:  # fmt: skip
    return _norm(op(Linear, x, weight, OneOf((bias, None))), gain, shift, mean, variance, momentum, eps, cudnn)


def _refuse_linear(match: Match, graph: Graph) -> str | None:
    # A batch norm scales axis 1; a linear map's channels are the last.
    rank = match.outputs[0].type.rank
    return _refuse(match, graph) if rank == 2 else f"the norm is over axis 1 of {rank}, not over the layer's channels"


def _draw_linear(choose: Chooser) -> Mapping[str, Any]:
    inner, outer = choose.integer(2, 6), choose.integer(2, 6)
    return {
        "x": TensorType(F32, (choose.integer(2, 5), inner)),
        "weight": small_integers(choose, outer, inner),
        **_draw_norm(choose, outer),
    }


LINEAR = pattern_rule(
    "batch norm after a linear map",
    _after_linear,
    lambda to, match: _folded(to, match, Linear()),
    _draw_linear,
    _refuse_linear,
)


class FoldBatchNorm(RewritePass):
    """Scales the weights of a convolution or linear map so that the batch norm behind it is part of it.

    before: batch_norm(conv2d(x, @w, @b), @gain, @shift, @mean, @variance)
    after:  conv2d(x, @w * scale, (@b - @mean) * scale + @shift)      (scale = gain / sqrt(variance + eps))

    What it writes beside the layer depends on parameters alone: `fold-constants` makes parameters of it. A norm that
    takes its statistics from the batch stays, as does one whose layer's result is also read elsewhere.

    Source of the method: Jacob et al., Quantization and Training of Neural Networks (2018), section 3.2.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def rules(self, context: Context) -> Sequence[Rule]:
        return (CONVOLUTION, LINEAR)
