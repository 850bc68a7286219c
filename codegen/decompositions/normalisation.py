"""Normalisation layers: the model operations where they fit, folds and elementwise arithmetic elsewhere."""

from __future__ import annotations

import torch

from planish.codegen.decompositions.statistics import moments, wide
from planish.codegen.dims import product
from planish.codegen.legalise import Arguments, Decomposition, Legaliser
from planish.ir import Node, Operand
from planish.ir.ops import LayerNorm, RmsNorm


def _flat_last(to: Legaliser, x: Operand | None, kept: int) -> Operand | None:
    """The tensor with all axes from number `kept` on joined."""
    if x is None or x.type.rank == kept + 1:
        return x
    return to.call("reshape.default", x, [*x.type.shape[:kept], product(x.type.shape[kept:])])


def _layer_norm(to: Legaliser, arguments: Arguments, node: Node) -> Operand | list[Operand]:
    x: Operand = arguments["input"]
    kept = x.type.rank - len(arguments["normalized_shape"])
    weight, bias = (_flat_last(to, arguments[n], 0) for n in ("weight", "bias"))
    flat = _flat_last(to, x, kept)
    assert flat is not None
    normed = to.place(LayerNorm(arguments["eps"]), (flat, weight, bias))[0]
    result = normed if flat is x else to.call("reshape.default", normed, list(x.type.shape))
    if len(node.outputs) == 1:
        return result
    mean, variance = moments(to, wide(to, x), list(range(kept, x.type.rank)))
    return [result, mean, to.call("rsqrt.default", to.call("add.Scalar", variance, arguments["eps"]))]


def _rms_norm(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x: Operand = arguments["input"]
    kept = x.type.rank - len(arguments["normalized_shape"])
    flat, weight = _flat_last(to, x, kept), _flat_last(to, arguments["weight"], 0)
    assert flat is not None
    eps = arguments["eps"]
    normed = to.place(RmsNorm(torch.finfo(x.type.dtype).eps if eps is None else eps), (flat, weight))[0]
    return normed if flat is x else to.call("reshape.default", normed, list(x.type.shape))


def _batch_norm(to: Legaliser, arguments: Arguments, node: Node) -> list[Operand]:
    """With the running statistics: one scale and one shift for each channel."""
    x = wide(to, arguments["input"])
    mean, variance = wide(to, arguments["running_mean"]), wide(to, arguments["running_var"])
    scale = to.call("rsqrt.default", to.call("add.Scalar", variance, arguments["eps"]))
    if arguments["weight"] is not None:
        scale = to.call("mul.Tensor", scale, wide(to, arguments["weight"]))
    shift = to.call("neg.default", to.call("mul.Tensor", mean, scale))
    if arguments["bias"] is not None:
        shift = to.call("add.Tensor", shift, wide(to, arguments["bias"]))
    shape = [-1, *[1] * (x.type.rank - 2)]
    scaled = to.call("mul.Tensor", x, to.call("view.default", scale, shape))
    result = to.call("add.Tensor", scaled, to.call("view.default", shift, shape))
    dtype = node.outputs[0].type.dtype
    result = result if result.type.dtype == dtype else to.call("to.dtype", result, dtype)
    # The saved statistics of an inference call are empty.
    return [result, *(to.call("zeros.default", [0], dtype=v.type.dtype) for v in node.outputs[1:])]


def _group_norm(to: Legaliser, arguments: Arguments, node: Node) -> Operand | list[Operand]:
    x: Operand = arguments["input"]
    groups = int(arguments["num_groups"] if "num_groups" in arguments else arguments["group"])
    shape = x.type.shape
    flat = to.call("reshape.default", wide(to, x), [shape[0], groups, product(shape[1:]) // groups])
    mean, variance = moments(to, flat, [2])
    spread = to.call("rsqrt.default", to.call("add.Scalar", variance, arguments["eps"]))
    normed = to.call("mul.Tensor", to.call("sub.Tensor", flat, mean), spread)
    result = to.call("reshape.default", normed, list(shape))
    channels = [shape[1], *[1] * (x.type.rank - 2)]
    for name, overload in (("weight", "mul.Tensor"), ("bias", "add.Tensor")):
        if arguments[name] is not None:
            result = to.call(overload, result, to.call("view.default", wide(to, arguments[name]), channels))
    if result.type.dtype != x.type.dtype:
        result = to.call("to.dtype", result, x.type.dtype)
    if len(node.outputs) == 1:
        return result
    return [result, to.call("squeeze.dim", mean, 2), to.call("squeeze.dim", spread, 2)]


NORMALISATION: dict[str, Decomposition] = {
    "layer_norm.default": _layer_norm,
    "native_layer_norm.default": _layer_norm,
    "rms_norm.default": _rms_norm,
    "batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "native_batch_norm.default": _batch_norm,
    "group_norm.default": _group_norm,
    "native_group_norm.default": _group_norm,
}
