"""The steps by which random modules grow: what can be done with a value of a given type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from planish.ir import Op, TensorType, Value
from planish.ir.ops import (
    OPS,
    Attention,
    CacheAppend,
    GatedActivation,
    LastToken,
    LayerNorm,
    Linear,
    QuantizeActivation,
    QuantizedLinear,
    RmsNorm,
    Rope,
    Slot,
    aten,
)  # fmt: skip
from planish.ir.types import as_dim, resolve

if TYPE_CHECKING:
    from planish.testing.modules import Grower

Action = Callable[["Grower", Value], object]


@dataclass(frozen=True)
class Step:
    """One way to grow.

    Attributes:
        name: for messages.
        fits: whether it applies to a value of that type.
        grow: appends operations that read the value.
        exact: whether small integers stay integers.
    """

    name: str
    fits: Callable[[TensorType], bool]
    grow: Action
    exact: bool

    def __call__(self, grower: Grower, x: Value) -> None:
        self.grow(grower, x)


def applicable(steps: list[Step], type: TensorType) -> list[Step]:
    return [step for step in steps if step.fits(type)]


def _any(type: TensorType) -> bool:
    return True


def _float(type: TensorType) -> bool:
    return type.dtype.is_floating_point


def _fixed(type: TensorType, axis: int = -1) -> bool:
    """Whether an axis has a fixed size."""
    return type.rank >= -axis and isinstance(type.shape[axis], int)


def _vector(type: TensorType) -> bool:
    """A float tensor whose last axis has a fixed size."""
    return _float(type) and _fixed(type)


def _last(x: Value) -> int:
    return resolve(x.type.shape[-1], {})


def _unary(*names: str) -> Action:
    return lambda g, x: g.emit(aten(g.choose.choice(list(names)), Slot(0)), x)


def _scalar(g: Grower, x: Value) -> None:
    """Attributes that compare equal in Python and are not the same, on one operand."""
    name = g.choose.choice(["add.Scalar", "mul.Scalar", "sub.Scalar"])
    for number in g.choose.choice([(1,), (1, 1.0), (2.0,), (0.0, -0.0), (2, 2)]):
        g.emit(aten(name, Slot(0), number), x)


def _binary(g: Grower, x: Value) -> None:
    """With itself, with another value of its type, or with a parameter that broadcasts.

    Values are not multiplied with each other: repeated squares leave the range of every dtype.
    """
    names = ["add.Tensor", "sub.Tensor"]
    other: Any = g.choose.choice([v for v in g.values if v.type == x.type])
    if _fixed(x.type) and g.choose.boolean():
        other = g.param(x.type.with_shape(x.type.shape[-1:]))
        names.append("mul.Tensor")
    name = g.choose.choice(names)
    if other is x and g.choose.boolean():
        g.emit(aten(name, Slot(0), Slot(0)), x)
    else:
        g.emit(aten(name, Slot(0), Slot(1)), *([x, other] if g.choose.boolean() else [other, x]))


def _twin(g: Grower, x: Value) -> None:
    """An operation that is there already, once more."""
    node = g.choose.choice(g.builder.nodes)
    g.emit(node.op, *node.inputs)


def _linear(g: Grower, x: Value) -> Value:
    outs = g.choose.choice([4, 6, 2, 5, 1])
    weight = g.param(x.type.with_shape((outs, _last(x))), encoded=True)
    bias = g.param(x.type.with_shape((outs,))) if g.choose.boolean() else None
    return g.emit(Linear(), x, weight, bias)


def _quantized_linear(g: Grower, x: Value) -> None:
    codes = g.emit(QuantizeActivation(), x)
    scale = g.values[-1]
    outs = g.choose.choice([4, 3, 1])
    weight = g.param(x.type.with_shape((outs, _last(x))), encoded=True)
    g.emit(QuantizedLinear(), codes, scale, weight, None)


def _norm(g: Grower, x: Value) -> None:
    eps = g.choose.choice([1e-5, 1e-6])
    weight = g.param(x.type.with_shape(x.type.shape[-1:])) if g.choose.boolean() else None
    if g.choose.boolean():
        g.emit(RmsNorm(eps), x, weight)
    else:
        g.emit(LayerNorm(eps), x, weight, g.param(x.type.with_shape(x.type.shape[-1:])))


def _gated(g: Grower, x: Value) -> None:
    name = g.choose.choice(["silu", "relu", "gelu", "gelu_tanh"])
    same = [v for v in g.values if v.type == x.type]
    g.emit(GatedActivation(name), x, None if _last(x) % 2 == 0 and g.choose.boolean() else g.choose.choice(same))


def _split_last(g: Grower, x: Value) -> Value:
    parts = [n for n in (2, 3, 1) if _last(x) % n == 0]
    count = g.choose.choice(parts)
    return g.emit(aten("view.default", Slot(0), (*x.type.shape[:-1], count, _last(x) // count)), x)


def _merge(g: Grower, x: Value) -> None:
    """Two neighbouring axes become one."""
    at = g.choose.integer(0, x.type.rank - 2)
    shape = x.type.shape
    g.emit(aten("reshape.default", Slot(0), (*shape[:at], as_dim(shape[at] * shape[at + 1]), *shape[at + 2 :])), x)


def _transpose(g: Grower, x: Value) -> None:
    axes = [g.choose.integer(0, x.type.rank - 1) for _ in range(2)]
    g.emit(aten("transpose.int", Slot(0), *axes), x)


def _transpose_back(g: Grower, x: Value) -> None:
    """A pair of transposes that cancel: the left side of a rewrite."""
    axes = [g.choose.integer(0, x.type.rank - 1) for _ in range(2)]
    once = g.emit(aten("transpose.int", Slot(0), *axes), x)
    g.emit(aten("transpose.int", Slot(0), *axes), once)


def _cat(g: Grower, x: Value) -> None:
    same = [v for v in g.values if v.type == x.type]
    axis = g.choose.integer(-x.type.rank, x.type.rank - 1)
    g.emit(aten("cat.default", (Slot(0), Slot(1)), axis), x, g.choose.choice(same))


def _slice(g: Grower, x: Value) -> None:
    size = _last(x)
    start = g.choose.choice([0, size - 1, size // 2])
    end = g.choose.choice([size, start + 1])
    g.emit(aten("slice.Tensor", Slot(0), -1, start, end), x)


def _sum(g: Grower, x: Value) -> None:
    g.emit(aten("sum.dim_IntList", Slot(0), [g.choose.integer(0, x.type.rank - 1)], g.choose.boolean()), x)


def _softmax(g: Grower, x: Value) -> None:
    g.emit(aten("softmax.int", Slot(0), g.choose.choice([-1, 0])), x)


def _attention(g: Grower, x: Value) -> None:
    """Projections, heads, rotation where positions are known, attention and the way back."""
    kv_heads, group, size = g.choose.choice([1, 2]), g.choose.choice([1, 2, 3]), g.choose.choice([2, 3])
    batch, length, width = x.type.shape
    positions = g.positions(batch, length)

    def heads(count: int) -> Value:
        flat = g.emit(Linear(), x, g.param(x.type.with_shape((count * size, width)), encoded=True), None)
        return g.emit(aten("view.default", Slot(0), (batch, length, count, size)), flat)

    q, k, v = heads(kv_heads * group), heads(kv_heads), heads(kv_heads)
    if positions is not None:
        frequencies = g.param(TensorType(torch.float32, (1,)), 1, 1)
        q, k = (g.emit(Rope(), t, positions, frequencies) for t in (q, k))
    window = g.choose.choice([None, 2])
    attended = g.emit(Attention(0.5, window=window), q, k, v, None, None, None, None, None, None)
    g.emit(aten("reshape.default", Slot(0), (batch, length, kv_heads * group * size)), attended)


def _batched(type: TensorType) -> bool:
    """[B, S, ...] with fixed trailing axes."""
    names = [getattr(d, "name", None) for d in type.shape[:2]]
    return _float(type) and names == ["B", "S"] and all(isinstance(d, int) for d in type.shape[2:])


def _cache(g: Grower, x: Value) -> None:
    """The value joins a cache, which is updated."""
    state = g.state(x.type.with_shape(x.type.shape[2:]))
    g.updates[state.name] = g.emit(CacheAppend(), state, x, g.row("start"), g.row("length"))


def _sampled(g: Grower, x: Value) -> None:
    """Any operation of the registry on parameters of the types it drew; index operands within its ranges."""
    op_class: type[Op] = g.choose.choice(list(OPS.values()))
    sample = op_class.sample(g.choose)
    ranges = sample.op.operand_ranges(*sample.operands)
    operands = []
    for number, type in enumerate(sample.operands):
        low, high = (resolve(b, {}) for b in ranges.get(number, (-4, 4)))
        operands.append(None if type is None else g.param(type, low, high))
    g.emit(sample.op, *operands)


STEPS: list[Step] = [
    Step("unary", _float, _unary("neg.default", "abs.default", "relu.default"), True),
    Step("scalar", _float, _scalar, True),
    Step("binary", _float, _binary, True),
    Step("twin", _any, _twin, True),
    Step("linear", _vector, _linear, True),
    Step("transpose", lambda t: t.rank >= 1, _transpose, True),
    Step("transpose_back", lambda t: t.rank >= 2, _transpose_back, True),
    Step("split_last", _vector, _split_last, True),
    Step("merge", lambda t: t.rank >= 2, _merge, True),
    Step("slice", _vector, _slice, True),
    Step("cat", lambda t: t.rank >= 1, _cat, True),
    Step("sum", lambda t: _float(t) and t.rank >= 1, _sum, True),
    Step("cache", _batched, _cache, True),
    Step("last_token", _batched, lambda g, x: g.emit(LastToken(), x, g.row("length")), True),
    Step("tame", _float, _unary("tanh.default", "sigmoid.default", "silu.default"), False),
    Step("norm", _vector, _norm, False),
    Step("gated", _vector, _gated, False),
    Step("softmax", lambda t: _float(t) and t.rank >= 1, _softmax, False),
    Step("quantized_linear", _vector, _quantized_linear, False),
    Step("attention", lambda t: _vector(t) and t.rank == 3, _attention, False),
    Step("sampled", _any, _sampled, False),
]
