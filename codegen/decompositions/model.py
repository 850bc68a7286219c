"""Model operations for which no kernel fits (another dtype, a gain computed at run time), written out in ATen calls."""

from __future__ import annotations

import math
from typing import Any

import torch

from planish.codegen.decompositions.statistics import moments
from planish.codegen.legalise import Arguments, Decomposition, Legaliser
from planish.ir import Node, Operand, UnsupportedError
from planish.ir.hadamard import core_of, hadamard
from planish.ir.ops import Attention, CacheAppend, Hadamard, LayerNorm, RmsNorm, Rope
from planish.ir.types import as_dim


def _rms_norm(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, weight, op = arguments["x"], arguments["weight"], node.op
    assert isinstance(op, RmsNorm)
    squares = to.call("mean.dim", to.call("mul.Tensor", x, x), [-1], True)
    normed = to.call("mul.Tensor", x, to.call("rsqrt.default", to.call("add.Scalar", squares, op.eps)))
    return normed if weight is None else to.call("mul.Tensor", normed, weight)


def _layer_norm(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, op = arguments["x"], node.op
    assert isinstance(op, LayerNorm)
    mean, variance = moments(to, x, [x.type.rank - 1])
    spread = to.call("rsqrt.default", to.call("add.Scalar", variance, op.eps))
    result = to.call("mul.Tensor", to.call("sub.Tensor", x, mean), spread)
    for name, overload in (("weight", "mul.Tensor"), ("bias", "add.Tensor")):
        if arguments[name] is not None:
            result = to.call(overload, result, arguments[name])
    return result


def _hadamard(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, op = arguments["x"], node.op
    assert isinstance(op, Hadamard)
    core = core_of(op.block) or 1
    power = op.block // core
    shape, dtype = list(x.type.shape), x.type.dtype
    blocks = [*shape[:-1], shape[-1] // op.block, core]
    result, half, axis = x, 1, len(blocks) + 1
    while half < power:
        pairs = to.call("reshape.default", result, [*blocks, power // (2 * half), 2, half])
        pair = [to.call("select.int", pairs, axis, n) for n in (0, 1)]
        result = to.call("stack.default", [to.call(f"{n}.Tensor", *pair) for n in ("add", "sub")], axis)
        half *= 2
    if core > 1:
        matrix = to.constant(f"hadamard.{core}.{dtype}", hadamard(core).to(dtype))
        result = to.call("matmul.default", matrix, to.call("reshape.default", result, [*blocks, power]))
    return to.call("mul.Scalar", to.call("reshape.default", result, shape), 1 / math.sqrt(op.block))


def _rope(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, positions, frequencies, op = arguments["x"], arguments["positions"], arguments["inv_freq"], node.op
    assert isinstance(op, Rope)
    dtype = x.type.dtype
    place = to.call("unsqueeze.default", to.call("to.dtype", positions, dtype), 2)
    angle = to.call("unsqueeze.default", to.call("mul.Tensor", place, to.call("to.dtype", frequencies, dtype)), 2)
    cos, sin = (to.call("mul.Scalar", to.call(f"{n}.default", angle), op.scale) for n in ("cos", "sin"))
    pairs = frequencies.type.shape[0]
    turned = to.call("slice.Tensor", x, 3, 0, 2 * pairs)
    if op.style == "half":
        a, b = to.call("slice.Tensor", turned, 3, 0, pairs), to.call("slice.Tensor", turned, 3, pairs, 2 * pairs)
    else:
        a, b = (to.call("slice.Tensor", turned, 3, first, 2 * pairs, 2) for first in (0, 1))
    first = to.call("sub.Tensor", to.call("mul.Tensor", a, cos), to.call("mul.Tensor", b, sin))
    second = to.call("add.Tensor", to.call("mul.Tensor", b, cos), to.call("mul.Tensor", a, sin))
    if op.style == "half":
        rotated = to.call("cat.default", [first, second], 3)
    else:
        rotated = to.call("reshape.default", to.call("stack.default", [first, second], 4), list(turned.type.shape))
    if as_dim(2 * pairs) == x.type.shape[3]:
        return rotated
    rest = to.call("slice.Tensor", x, 3, 2 * pairs, x.type.shape[3])
    return to.call("cat.default", [rotated, rest], 3)


def _attention(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    op = node.op
    assert isinstance(op, Attention)
    q, k, v = (arguments[n] for n in ("q", "k", "v"))
    dtype, length, keys = q.type.dtype, q.type.shape[1], k.type.shape[1]
    group = q.type.shape[2] // k.type.shape[2]
    mask = _visible(to, op, arguments, length, keys)
    # A key that no query sees may hold anything, even NaN: it must not reach the products.
    seen = to.call("any.dim", mask, 1)
    seen = to.call("reshape.default", seen, [seen.type.shape[0], keys, 1, 1])
    k, v = (_heads(to, to.call("where.ScalarOther", seen, t, 0.0), group) for t in (k, v))
    scores = to.call("matmul.default", to.call("transpose.int", q, 1, 2), to.call("transpose.int", k, 2, 3))
    scores = to.call("mul.Scalar", scores, op.scale)
    if op.softcap is not None:
        bent = to.call("tanh.default", to.call("div.Scalar", scores, op.softcap))
        scores = to.call("mul.Scalar", bent, op.softcap)
    if arguments["slopes"] is not None:
        distance = to.call("to.dtype", _distance(to, arguments["start"], length, keys), dtype)
        slopes = to.call("reshape.default", to.call("to.dtype", arguments["slopes"], dtype), [1, -1, 1, 1])
        scores = to.call("add.Tensor", scores, to.call("mul.Tensor", slopes, to.call("unsqueeze.default", distance, 1)))
    if arguments["bias"] is not None:
        scores = to.call("add.Tensor", scores, arguments["bias"])
    shown = to.call("unsqueeze.default", mask, 1)
    scores = to.call("where.ScalarOther", shown, scores, float("-inf"))
    weights = _weights(to, scores, shown, arguments["sinks"])
    return to.call("transpose.int", to.call("matmul.default", weights, v), 1, 2)


def _weights(to: Legaliser, scores: Operand, shown: Operand, sinks: Operand | None) -> Operand:
    """Softmax over the keys with one more logit in the denominator; rows that see nothing give zeros."""
    peak = to.call("amax.default", scores, [-1], True)
    if sinks is not None:
        sinks = to.call("reshape.default", sinks, [1, -1, 1, 1])
        peak = to.call("maximum.default", peak, sinks)
    peak = to.call("where.ScalarSelf", to.call("isinf.default", peak), 0.0, peak)
    powers = to.call("exp.default", to.call("sub.Tensor", scores, peak))
    powers = to.call("where.ScalarOther", shown, powers, 0.0)
    total = to.call("sum.dim_IntList", powers, [-1], True)
    if sinks is not None:
        total = to.call("add.Tensor", total, to.call("exp.default", to.call("sub.Tensor", sinks, peak)))
    total = to.call("where.ScalarSelf", to.call("eq.Scalar", total, 0.0), 1.0, total)
    return to.call("div.Tensor", powers, total)


def _heads(to: Legaliser, x: Operand, group: Any) -> Operand:
    """[batch, keys, kv_heads, size] as [batch, heads, keys, size]."""
    turned = to.call("transpose.int", x, 1, 2)
    return turned if group == 1 else to.call("repeat_interleave.self_int", turned, group, 1)


def _distance(to: Legaliser, start: Operand | None, length: Any, keys: Any) -> Operand:
    """j - p for query positions p and key positions j: i64 [batch or 1, length, keys]."""
    return to.call("sub.Tensor", to.call("arange.default", keys), _places(to, start, length))


def _places(to: Legaliser, start: Operand | None, length: Any) -> Operand:
    """Positions of the queries, i64 [batch or 1, length, 1]."""
    places = to.call("reshape.default", to.call("arange.default", length), [1, length, 1])
    if start is None:
        return places
    return to.call("add.Tensor", places, to.call("reshape.default", start, [start.type.shape[0], 1, 1]))


def _visible(to: Legaliser, op: Attention, arguments: Arguments, length: Any, keys: Any) -> Operand:
    """Which keys each query sees: bool [batch, length, keys]."""
    p, j = _places(to, arguments["start"], length), to.call("arange.default", keys)
    batch = arguments["q"].type.shape[0]
    conditions = []
    if op.causal:
        conditions.append(to.call("le.Tensor", j, p))
    if op.window is not None:
        conditions.append(to.call("gt.Tensor", j, to.call("sub.Scalar", p, op.window)))
    if op.chunk is not None:
        parts = [to.call("floor_divide.Scalar", t, op.chunk) for t in (j, p)]
        conditions.append(to.call("eq.Tensor", *parts))
    if arguments["kv_length"] is not None:
        conditions.append(to.call("lt.Tensor", j, to.call("reshape.default", arguments["kv_length"], [batch, 1, 1])))
    if arguments["padding"] is not None:
        conditions.append(to.call("unsqueeze.default", arguments["padding"], 1))
    mask = to.call("full.default", [batch, length, keys], True, dtype=torch.bool)
    for condition in conditions:
        mask = to.call("logical_and.default", mask, condition)
    return mask


def _append(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    """A new cache: each place takes its new token or keeps what it had. For caches that no kernel fills in place."""
    assert isinstance(node.op, CacheAppend)
    if node.op.encoding is not None:
        where = f" at {node.source}" if node.source else ""
        raise UnsupportedError(
            f"cache_append{where} rounds rows to {node.op.encoding}, which compiled code does in place alone: in a state "
            "that attention alone reads"
        )
    cache, new, start, length = (arguments[n] for n in ("cache", "new", "start", "length"))
    batch, capacity = cache.type.shape[:2]
    rows = [batch, 1]
    place = to.call("arange.default", capacity)
    token = to.call("sub.Tensor", place, to.call("reshape.default", start, rows))
    written = to.call(
        "logical_and.default",
        to.call("ge.Scalar", token, 0),
        to.call("lt.Tensor", token, to.call("reshape.default", length, rows)),
    )
    # Outside the new tokens any index that exists will do.
    inside = to.call("clamp.default", token, 0, as_dim(new.type.shape[1] - 1))
    trailing = list(cache.type.shape[2:])
    wide = [batch, capacity, *[1] * len(trailing)]
    index = to.call("expand.default", to.call("reshape.default", inside, wide), [batch, capacity, *trailing])
    taken = to.call("gather.default", new, 1, index)
    return to.call("where.self", to.call("reshape.default", written, wide), taken, cache)


MODEL: dict[str, Decomposition] = {
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "hadamard": _hadamard,
    "rope": _rope,
    "attention": _attention,
    "cache_append": _append,
}
