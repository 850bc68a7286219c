"""Random modules with spaces worth finding: streams with several readers and writers, norms, heads, gates, convolutions.

Every operation is drawn where its result counts, and no value is left unread, so that what an analysis declares too
narrowly shows as an element that does nothing. Left out is what two operations allow together and neither of them alone:
a bias of keys that nothing turns, which the softmax takes away again; a product index by index whose sum over the indices
is taken, which is an inner product; what is added to each token before tokens are summed up, or to each index before these
are; the larger of a number and itself; a sigmoid, which is a half and something odd, before a mean is taken away. Parameters
are float64, so that an element that acts on them rounds nine orders of magnitude below float32.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from planish.ir import Builder, Chooser, Function, Module, ParamRef, TensorType, Value
from planish.ir.ops import (
    Conv2d,
    Embedding,
    LayerNorm,
    Linear,
    RmsNorm,
    Slot,
    aten,
)  # fmt: skip
from planish.ir.spaces.analysis import Spaces
from planish.testing.chooser import HypothesisChooser
from planish.testing.spaced import BATCH, ENTRIES, FEATURES, HEIGHT, TOKENS, WIDTH, Spaced, last, numbers
from planish.testing.spaced_bodies import BODIES, bent
from planish.testing.trials import Trial


def _normed(s: Spaced, x: Value) -> Value:
    kind = "none" if s.exact else s.choose.choice(["rms", "none"] if s.plain else ["rms", "rms", "layer", "none"])
    if kind == "none":
        return x
    gain = s.param(last(x)) if not s.plain and s.choose.boolean() else None
    if kind == "rms":
        return s.emit(RmsNorm(0.01), x, gain)
    return s.emit(LayerNorm(0.01), x, gain, s.param(last(x)) if s.choose.boolean() else None)


def _block(s: Spaced, stream: Value) -> Value:
    """Something read from the stream and added to it."""
    names = [name for name, (_, exact) in BODIES.items() if exact or not s.exact]
    body, _ = BODIES[s.choose.choice([*names, "straight", "straight", "straight"])]
    y = body(s, _normed(s, stream))
    # Without a map of its own a body of the stream's size is written as it is.
    if last(y) != last(stream) or s.plain or s.choose.integer(0, 3):
        y = s.linear(y, last(stream))
    else:
        s.weighed = True
    if not s.plain and s.choose.integer(0, 3) == 0:
        y = s.both("mul.Tensor", y, s.param(last(stream)))
        s.weighed = True
    return s.both("add.Tensor", stream, y)


def _entered(s: Spaced, kind: str, first: ParamRef) -> Value:
    """A stream: rows of a table, or a map of features."""
    if kind == "tokens":
        return s.emit(Embedding(), s.input("ids", TensorType(torch.int64, (BATCH, TOKENS))), first)
    x = s.input("x", TensorType(torch.float64, (BATCH, TOKENS, FEATURES)))
    return s.emit(Linear(), x, first, None)


def _left(s: Spaced, stream: Value, table: ParamRef | None) -> Value:
    """What a function gives of a stream."""
    straight = ["head", "mean", "table", "tokens"]
    kind = s.choose.choice(straight if s.plain else [*straight, "head", "raw", "unknown"])
    if kind == "raw":
        return stream
    if kind == "unknown":
        return s.call("cumsum.default", stream, -1)
    if kind == "mean":
        stream = bent(s, stream) if s.weighed else stream
        return s.call(
            s.choose.choice(["sum.dim_IntList"] if s.exact else ["mean.dim", "sum.dim_IntList"]), stream, [-1]
        )
    if kind == "tokens" and not s.placed:
        stream = s.call("sum.dim_IntList", stream, [1])
    y = _normed(s, stream)
    if kind == "table" and table is not None:
        return s.emit(Linear(), y, table, None)
    return s.linear(y, s.size())


def _sequence(s: Spaced) -> Module:
    n, kind = s.size(), s.choose.choice(["tokens", "features"])
    first = s.param(ENTRIES, n) if kind == "tokens" else s.param(n, FEATURES)
    functions = list[Function]()
    for name in ("forward", "other")[: 1 + (s.choose.integer(0, 3) == 0)]:
        s.builder = Builder(name)
        stream = _entered(s, kind, first)
        if s.choose.integer(0, 3) == 0:
            stream = s.both("add.Tensor", stream, s.param(TOKENS, n))
            s.placed = True
        for _ in range(s.choose.integer(1, 2 if s.exact or functions else 3)):
            stream = _block(s, stream)
        out = _left(s, stream, first if kind == "tokens" else None)
        functions.append(s.builder.finish([out], ["y"]))
    module = s.module()
    for function in functions:
        module = module.with_function(function)
    return module


def _convolved(s: Spaced, x: Value, outs: int, groups: int, kernel: tuple[int, int]) -> Value:
    ins = x.type.shape[1]
    assert isinstance(ins, int)
    padding = (kernel[0] // 2, kernel[1] // 2)
    bias = s.param(outs) if s.choose.boolean() else None
    return s.emit(Conv2d(padding=padding, groups=groups), x, s.param(outs, ins // groups, *kernel), bias)


def _image(s: Spaced) -> Module:
    """Channels: grouped and depthwise convolutions, gains and shifts, residual sums, concatenations, shuffles, pools."""
    channels = s.choose.choice([4, 6, 3])
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    x = s.input("image", TensorType(torch.float64, (BATCH, 2, HEIGHT, WIDTH)))
    h = _convolved(s, x, channels, 1, s.choose.choice([(3, 3), (1, 1)]))
    for _ in range(s.choose.integer(1, 2)):
        z = _convolved(s, h, channels, s.choose.choice(divisors), s.choose.choice([(3, 3), (1, 3)]))
        if s.choose.boolean():
            z = s.both(s.choose.choice(["mul.Tensor", "add.Tensor"]), z, s.param(channels, 1, 1))
        z = bent(s, z) if s.choose.boolean() else z
        kind = s.choose.choice(["add", "chain", "cat", "shuffle", "pool"])
        if kind == "add":
            h = s.both("add.Tensor", h, z)
        elif kind == "cat":
            h = _convolved(s, s.emit(aten("cat.default", (Slot(0), Slot(1)), 1), h, z), channels, 1, (1, 1))
        elif kind == "shuffle":
            groups = s.choose.choice(divisors)
            sizes = [int(d) for d in z.type.shape]  # type: ignore[call-overload]
            z = s.call("view.default", z, [BATCH, groups, channels // groups, *sizes[2:]])
            h = s.call("reshape.default", s.call("transpose.int", z, 1, 2), sizes)
        elif kind == "pool":
            h = s.call("max_pool2d.default", z, [2, 2], [1, 1])
        else:
            h = z
    y = s.call("sum.dim_IntList", h, [2, 3])
    out = s.linear(_normed(s, y), s.size())
    return s.module().with_function(s.builder.finish([out], ["y"]))


@st.composite
def spaced_modules(draw: st.DrawFn, *, exact: bool = False) -> Module:
    """Modules whose indices are tied in many ways, with float64 parameters; see the docstring of the file.

    Args:
        exact: parameters are small integers, and operations keep integers (far below 2^53, so that float64 is exact).
    """
    return spaced_module(HypothesisChooser(draw), draw(st.integers(0, 1 << 16)), exact)


def spaced_module(choose: Chooser, seed: int, exact: bool = False) -> Module:
    """As `spaced_modules` draws them, from any source of choices."""
    spaced = Spaced(choose, torch.Generator().manual_seed(seed), exact, plain=choose.integer(0, 2) == 0)
    return _image(spaced) if choose.integer(0, 4) == 0 else _sequence(spaced)


def trial(module: Module, spaces: Spaces, seed: int, exact: bool = False) -> Trial:
    """Drawn parameters and inputs for all functions of such a module: every entry of a table is read."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(BATCH * TOKENS) % ENTRIES
    ids = ids[torch.randperm(len(ids), generator=generator)].reshape(BATCH, TOKENS)

    def drawn(type: TensorType) -> torch.Tensor:
        if not type.dtype.is_floating_point:
            return ids
        if exact:
            return torch.randint(-3, 4, type.concrete({}), generator=generator).double()
        return torch.randn(type.concrete({}), generator=generator, dtype=torch.float64)

    inputs = {name: {v.name: drawn(v.type) for v in function.inputs} for name, function in module.functions.items()}
    values = {name: numbers(param.type.concrete({}), generator, exact) for name, param in module.params.items()}
    return Trial(module, spaces, inputs, values, exact)
