"""What random modules with spaces do between reading a stream and writing to it."""

from __future__ import annotations

from collections.abc import Callable

from planish.ir import Value
from planish.ir.ops import (
    Attention,
    GatedActivation,
    LayerNorm,
    Positions,
    RmsNorm,
    Rope,
    Slot,
    aten,
)  # fmt: skip
from planish.testing.spaced import BATCH, BENT, EXACT, TOKENS, Spaced, last

Body = Callable[[Spaced, Value], Value]
"""From a stream [..., n] to something that a linear map writes back."""


def bent(s: Spaced, x: Value) -> Value:
    return s.call(s.choose.choice(list(EXACT if s.exact else BENT)), x)


def _hidden(s: Spaced, x: Value) -> Value:
    """One hidden layer, with vectors multiplied and added before or after it bends."""
    z = s.linear(x, s.size())
    for _ in range(s.choose.integer(0, 2)):
        z = s.both(s.choose.choice(["mul.Tensor", "add.Tensor"]), z, s.param(last(z)))
    z = bent(s, z)
    if s.choose.boolean():
        z = s.both(s.choose.choice(["mul.Tensor"] if s.exact else ["mul.Tensor", "div.Tensor"]), z, s.param(last(z)))
    return bent(s, z) if s.choose.integer(0, 2) == 0 else z


def _rectified_square(s: Spaced, x: Value) -> Value:
    return s.call("square.default", s.call("relu.default", s.linear(x, s.size())))


def _powered(s: Spaced, x: Value) -> Value:
    z = s.call("pow.Tensor_Scalar", s.linear(x, s.size()), s.choose.choice([2] if s.exact else [2, 3]))
    return s.call("sqrt.default", s.call("abs.default", z)) if s.choose.boolean() and not s.exact else z


def _gated(s: Spaced, x: Value) -> Value:
    op, m = GatedActivation("relu" if s.exact else s.choose.choice(["silu", "gelu", "relu"])), s.size()
    if s.choose.boolean():
        return s.emit(op, s.linear(x, 2 * m), None)
    return s.emit(op, s.linear(x, m), s.linear(x, m))


def _product(s: Spaced, x: Value) -> Value:
    """Two maps, or the halves of one, multiplied; one of them bent, or the larger of both."""
    m = s.size()
    if s.choose.boolean():
        a, b = s.builder.node(aten("split.Tensor", Slot(0), m, -1), s.linear(x, 2 * m)).outputs
    else:
        # The larger of a number and itself is itself, which no operation knows.
        a, b = s.linear(x, m), s.linear(x, m, tie=False)
    if s.choose.integer(0, 2) == 0:
        return s.both("maximum.default", a, b)
    return s.both("mul.Tensor", bent(s, a), b)


def _straight(s: Spaced, x: Value) -> Value:
    """Nothing bends between two maps; a number added, or a length taken, leaves fewer matrices than all."""
    z = s.linear(x, s.size())
    kinds: dict[str, Callable[[], Value]] = {
        "shifted": lambda: s.call("add.Scalar", z, 1),
        "scaled": lambda: s.call("mul.Scalar", z, 2),
        "plain": lambda: z,
        "repeated": lambda: s.call("repeat_interleave.self_int", z, 2, -1),
    }
    if not s.exact:
        kinds |= {
            "rms": lambda: s.emit(RmsNorm(0.01), z, None),
            "layer": lambda: s.emit(LayerNorm(0.01), z, None, s.param(last(z)) if s.choose.boolean() else None),
        }
    return kinds[s.choose.choice(list(kinds))]()


def _parts(s: Spaced, x: Value) -> Value:
    """Parts of an axis go their own ways and come together again, perhaps to be cut in another place."""
    first, second = s.size(), s.size()
    if s.choose.boolean():
        sizes = [first, second]
        a, b = s.builder.node(aten("split_with_sizes.default", Slot(0), sizes, -1), s.linear(x, first + second)).outputs
    else:
        a, b = s.linear(x, first), s.linear(x, second)
    a = bent(s, a)
    b = bent(s, b) if s.choose.boolean() else b
    joined = s.emit(aten("cat.default", (Slot(0), Slot(1)), -1), a, b)
    if s.choose.boolean():
        return joined
    # Cut elsewhere.
    cut = s.choose.choice([1, first - 1, first + 1])
    a, b = s.call("slice.Tensor", joined, -1, 0, cut), s.call("slice.Tensor", joined, -1, cut)
    return s.emit(aten("cat.default", (Slot(1), Slot(0)), -1), a, bent(s, b))


def _blocks(s: Spaced, x: Value) -> Value:
    """The same map of each block of an axis."""
    outer, inner = s.choose.choice([2, 3]), s.choose.choice([3, 4])
    z = s.call("view.default", s.linear(x, outer * inner), [BATCH, TOKENS, outer, inner])
    z = s.linear(z, s.choose.choice([3, 4]))
    z = bent(s, z) if s.choose.boolean() else z
    return s.call("reshape.default", z, [BATCH, TOKENS, outer * last(z)])


def _mixed_tokens(s: Spaced, x: Value) -> Value:
    """A map over tokens, whose rows are the stream's indices."""
    z = s.linear(s.call("transpose.int", x, 1, 2), s.size())
    z = s.linear(bent(s, z) if s.choose.boolean() else z, TOKENS)
    return s.call("transpose.int", z, 1, 2)


def _memory(s: Spaced, x: Value) -> Value:
    """Rows of a table weighed by how they fit, for the whole stream or for each of its heads."""
    entries, size = s.size(), s.choose.choice([3, 4])
    keys, values = s.param(size, entries), s.param(entries, size)
    if s.choose.boolean():
        scores = s.both("matmul.default", s.linear(x, size), keys)
        return s.both("matmul.default", _softened(s, scores), values)
    heads = s.choose.choice([2, 3])
    q = s.call("view.default", s.linear(x, heads * size), [BATCH, TOKENS, heads, size])
    q = s.call("transpose.int", q, 1, 2)
    y = s.both("matmul.default", _softened(s, s.both("matmul.default", q, keys)), values)
    return s.call("reshape.default", s.call("transpose.int", y, 1, 2), [BATCH, TOKENS, heads * size])


def _softened(s: Spaced, scores: Value) -> Value:
    if s.exact or s.choose.integer(0, 2) == 0:
        return scores
    return s.call("softmax.int", scores, -1)


def _attention(s: Spaced, x: Value) -> Value:
    """Heads that share keys and values, with or without rotary embedding, norms of queries and keys, and sinks."""
    kv, group = s.choose.choice([2, 3, 1]), s.choose.choice([1, 2, 3])
    pairs = s.choose.choice([0, 2, 3])
    rest = s.choose.choice([0, 3]) if pairs else s.choose.choice([3, 4])
    size, value_size = 2 * pairs + rest, s.choose.choice([3, 4])
    sizes = (kv * group * size, kv * size, kv * value_size)
    # A bias of all keys alike, which nothing turns, adds one number to all scores of a query.
    if s.choose.boolean():
        joint = s.linear(x, sum(sizes), False)
        q, k, v = s.builder.node(aten("split_with_sizes.default", Slot(0), list(sizes), -1), joint).outputs
    else:
        q, k, v = (
            s.linear(x, sizes[0]),
            s.linear(x, sizes[1], None if pairs and not rest else False),
            s.linear(x, sizes[2]),
        )
    q, k = (s.call("view.default", t, [BATCH, TOKENS, n, size]) for t, n in ((q, kv * group), (k, kv)))
    v = s.call("view.default", v, [BATCH, TOKENS, kv, value_size])
    if s.choose.integer(0, 3) == 0:
        q, k = (s.emit(RmsNorm(0.01), t, s.param(size)) for t in (q, k))
    if pairs:
        positions = s.emit(Positions(BATCH, TOKENS), None, None)
        frequencies = s.param(pairs, tie=False)
        rope = Rope(s.choose.choice(["half", "interleaved"]))
        q, k = (s.emit(rope, t, positions, frequencies) for t in (q, k))
    sinks = s.param(kv * group) if s.choose.integer(0, 2) == 0 else None
    op = Attention(scale=0.5, causal=s.choose.boolean(), softcap=s.choose.choice([None, 3.0]))
    y = s.emit(op, q, k, v, *[None] * 4, sinks, None)
    return s.call("reshape.default", y, [BATCH, TOKENS, kv * group * value_size])


def _unknown(s: Spaced, x: Value) -> Value:
    """An operation that states nothing about its indices."""
    z = s.linear(x, s.size())
    name, argument = s.choose.choice([("cumsum.default", -1), ("flip.default", [-1]), ("roll.default", [1])])
    return bent(s, s.call(name, z, argument))


BODIES: dict[str, tuple[Body, bool]] = {
    "hidden": (_hidden, True), "squared relu": (_rectified_square, True), "power": (_powered, True),
    "gated": (_gated, True), "product": (_product, True), "straight": (_straight, True), "parts": (_parts, True),
    "blocks": (_blocks, True), "tokens": (_mixed_tokens, True), "memory": (_memory, True),
    "attention": (_attention, False), "unknown": (_unknown, True),
}  # fmt: skip
"""What stands between reading a stream and writing to it, and whether it keeps integers."""
