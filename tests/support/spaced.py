"""A random module with spaces under construction, and the sizes that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from planish.ir import Builder, Chooser, Module, Op, Operand, ParamRef, TensorType, Value, dense_param
from planish.ir.ops import (
    Linear,
    Slot,
    aten,
)  # fmt: skip

BATCH, TOKENS, ENTRIES, FEATURES = 2, 4, 5, 3
HEIGHT, WIDTH = 5, 6
# Integers stay integers behind the first; the others bend.
EXACT = ("relu.default", "square.default", "abs.default")
BENT = (*EXACT, "tanh.default", "silu.default", "gelu.default", "leaky_relu.default", "sin.default")


@dataclass
class Spaced:
    """A module under construction.

    Attributes:
        choose: what draws.
        generator: of the parameters' values.
        exact: small integers, and only operations that keep them.
        plain: norms without gains, and nothing else that keeps a stream from being rotated.
        weighed: whether something in the stream has indices of its own: products with a parameter's, or a body as it is.
        placed: whether a parameter has something for each token.
    """

    choose: Chooser
    generator: torch.Generator
    exact: bool
    plain: bool = False
    params: dict[str, torch.Tensor] = field(default_factory=dict)
    weighed: bool = False
    placed: bool = False
    builder: Builder = field(default_factory=lambda: Builder("forward"))

    def emit(self, op: Op, *operands: Operand | None) -> Value:
        return self.builder.emit(op, *operands)

    def call(self, overload: str, x: Operand, *arguments: object) -> Value:
        return self.emit(aten(overload, Slot(0), *arguments), x)  # type: ignore[arg-type]

    def both(self, overload: str, x: Operand, y: Operand) -> Value:
        return self.emit(aten(overload, Slot(0), Slot(1)), x, y)

    def input(self, name: str, type: TensorType) -> Value:
        found = next((v for v in self.builder.inputs if v.name == name), None)
        return found if found is not None else self.builder.input(name, type)

    def param(self, *shape: int, tie: bool = True) -> ParamRef:
        """A parameter of that shape: now and then one that is there already."""
        same = [name for name, value in self.params.items() if tuple(value.shape) == shape]
        if tie and same and self.choose.integer(0, 3) == 0:
            return self.ref(self.choose.choice(same))
        name = f"p{len(self.params)}"
        self.params[name] = numbers(shape, self.generator, self.exact)
        return self.ref(name)

    def ref(self, name: str) -> ParamRef:
        return ParamRef(name, TensorType(torch.float64, tuple(self.params[name].shape)))

    def linear(self, x: Value, outs: int, bias: bool | None = None, *, tie: bool = True) -> Value:
        added = self.choose.boolean() if bias is None else bias
        weight = self.param(outs, last(x), tie=tie)
        return self.emit(Linear(), x, weight, self.param(outs) if added else None)

    def size(self) -> int:
        return self.choose.choice([4, 3, 5, 6])

    def module(self) -> Module:
        params = [dense_param(name, value) for name, value in self.params.items()]
        return Module({}, {p.name: p for p in params})


def numbers(shape: Sequence[int], generator: torch.Generator, exact: bool) -> torch.Tensor:
    """Of a parameter, float64: none near zero in vectors, for they multiply and divide."""
    signs: torch.Tensor = torch.randint(0, 2, shape, generator=generator).double() * 2 - 1
    if exact:
        return signs * torch.randint(1, 3, shape, generator=generator)
    if len(shape) == 1:
        return signs * (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64))
    even: torch.Tensor = torch.randn(shape, generator=generator, dtype=torch.float64) * float(shape[1]) ** -0.5
    return even


def last(x: Value) -> int:
    size = x.type.shape[-1]
    assert isinstance(size, int)
    return size
