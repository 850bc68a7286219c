"""Tensors of given types: small integers, which floats hold exactly, so that most results need no tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st

from planish.ir import Dim, Function, Module, Op, Sample, StateRef, TensorType
from planish.ir.ops import op_class
from planish.ir.ranges import input_ranges
from planish.ir.types import resolve
from planish.testing.chooser import HypothesisChooser

SMALL = 4


def tensor(type: TensorType, generator: torch.Generator, low: int = -SMALL, high: int = SMALL) -> torch.Tensor:
    """Integers from `low` to `high` (inclusive; from 0 for bool) in the type's dtype."""
    shape = type.concrete({})
    if type.dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    if type.dtype == torch.uint8:
        low = max(low, 0)
    return torch.randint(low, high + 1, shape, generator=generator).to(type.dtype)


def generators() -> st.SearchStrategy[torch.Generator]:
    return st.integers(0, 1 << 16).map(lambda seed: torch.Generator().manual_seed(seed))


def operand_tensors(
    op: Op, types: Sequence[TensorType | None], generator: torch.Generator
) -> tuple[torch.Tensor | None, ...]:
    """Legal operands for an operation: within the ranges that it declares."""
    ranges = op.operand_ranges(*types)
    tensors: list[torch.Tensor | None] = []
    for number, type in enumerate(types):
        low, high = (resolve(b, {}) for b in ranges.get(number, (-SMALL, SMALL)))
        tensors.append(None if type is None else tensor(type, generator, low, high))
    return tuple(tensors)


@st.composite
def tensors_for(draw: st.DrawFn, sample: Sample) -> tuple[torch.Tensor | None, ...]:
    """Legal operands for a drawn instance of an operation."""
    return operand_tensors(sample.op, sample.operands, draw(generators()))


@st.composite
def sizes_for(draw: st.DrawFn, module: Module, function: Function) -> dict[str, int]:
    """Small values for all symbols that a call of the function has. The capacity "C" leaves room for the tokens "S"."""
    names = {s for v in function.inputs for s in v.type.symbols}
    states = {r.name for r in function.references() if isinstance(r, StateRef)} | set(function.updates)
    names |= {s for name in states for s in module.states[name].type.symbols}
    sizes = {name: draw(st.integers(1, 4), label=name) for name in sorted(names)}
    if "C" in sizes:
        sizes["C"] += sizes.get("S", 1)
    return sizes


Call = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@st.composite
def calls(draw: st.DrawFn, module: Module, name: str) -> Call:
    """Legal inputs and states for one function of a module."""
    function = module.functions[name]
    sizes = draw(sizes_for(module, function))
    generator = draw(generators())
    ranges = input_ranges(function)
    inputs = {v.name: _ranged(v.type, sizes, ranges.get(v.name), generator) for v in function.inputs}
    used = {r.name for r in function.references() if isinstance(r, StateRef)} | set(function.updates)
    states = {n: _ranged(module.states[n].type, sizes, None, generator) for n in sorted(used)}
    return inputs, states


def _ranged(
    type: TensorType, sizes: Mapping[str, int], limits: tuple[Dim, Dim] | None, generator: torch.Generator
) -> torch.Tensor:
    low, high = (-SMALL, SMALL) if limits is None else (resolve(b, sizes) for b in limits)
    return tensor(type.with_shape(type.concrete(sizes)), generator, low, high)


@st.composite
def op_samples(draw: st.DrawFn, name: str) -> Sample:
    """Legal instances of a registered operation: attributes and operand types, drawn by the operation's own record."""
    return op_class(name).sample(HypothesisChooser(draw))


__all__ = ["Call", "calls", "generators", "op_samples", "operand_tensors", "sizes_for", "tensor", "tensors_for"]
