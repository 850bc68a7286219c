"""Probe inputs of a function, made from its types and from what its operations demand of their operands.

Sizes are asymmetric and differ from each other, so that no two axes are taken for one; a window or chunk that a
sequence must exceed to show is exceeded. Truth values are left padding: each row begins with one more false element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from planish.ir.errors import IRError
from planish.ir.module import Function, Module, StateRef
from planish.ir.ops import Aten
from planish.ir.params import storage_digest
from planish.ir.ranges import input_ranges
from planish.ir.types import TensorType, resolve

# For the symbols in order of appearance; the first is usually the batch.
SIZES = ((2, 7, 5, 11, 13), (3, 5, 8, 2, 9))
# Integer attributes up to this size (a window, a chunk) are exceeded by every symbol but the first.
EXCEEDED = 64
FREE_INTEGERS = 3


@dataclass(frozen=True)
class Probe:
    """Inputs by name, contents of states by name, and the sizes of all symbols."""

    inputs: Mapping[str, torch.Tensor]
    states: Mapping[str, torch.Tensor]
    sizes: Mapping[str, int]

    @cached_property
    def digest(self) -> str:
        """Equal for probes that hold the same bits."""
        tensors = {
            **{f"input {k}": v for k, v in self.inputs.items()},
            **{f"state {k}": v for k, v in self.states.items()},
        }
        return storage_digest(tensors)

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items()) or "fixed sizes"


def used_states(module: Module, function: Function) -> list[str]:
    """Names of the states that a function reads or updates."""
    return sorted({r.name for r in function.references() if isinstance(r, StateRef)} | set(function.updates))


def choose_sizes(module: Module, function: Function, number: int) -> dict[str, int]:
    """A size for each symbol of the inputs, within the range for which the module was traced, then of the states, whose
    capacity must hold what the inputs bring."""
    chosen: dict[str, int] = {}
    ranges = _traced_ranges(module)
    options = SIZES[number % len(SIZES)]
    least = _exceeded(function)
    for value in function.inputs:
        for name in _symbols(value.type):
            if name not in chosen:
                size = options[len(chosen) % len(options)] + len(chosen) // len(options)
                low, high = ranges.get(name, (1, None))
                size = low - 1 + (size if not chosen else max(size, least))
                chosen[name] = size if high is None else min(size, high)
    capacity = sum(chosen.values()) + 2
    for state in used_states(module, function):
        for name in _symbols(module.states[state].type):
            chosen.setdefault(name, capacity)
    return chosen


def _traced_ranges(module: Module) -> dict[str, tuple[int, int | None]]:
    """The least and the largest size (None: no limit) of the symbols that a trace has bounded."""
    stated: Any = module.metadata.get("dim_ranges", ())
    return {name: (low, high) for name, low, high in stated}


def _symbols(type: TensorType) -> list[str]:
    """Names of a type's symbols in the order of its axes."""
    found: dict[str, None] = {}
    for dim in type.shape:
        if not isinstance(dim, int):
            found.update(dict.fromkeys(sorted(s.name for s in dim.free_symbols)))
    return list(found)


def _exceeded(function: Function) -> int:
    """One more than the largest moderate integer attribute of a model operation, plus two for asymmetry."""
    found = [0]
    for node in function.nodes:
        if not isinstance(node.op, Aten):
            values = node.op.attributes().values()
            found += [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v <= EXCEEDED]
    return max(found) + 3


def make_probe(module: Module, function: Function, number: int, seed: int) -> Probe:
    """Probe `number` of a function; the same for the same module, number and seed."""
    generator = torch.Generator().manual_seed(seed * 1000 + number)
    sizes = choose_sizes(module, function, number)
    limits = input_ranges(function)
    inputs: dict[str, torch.Tensor] = {}
    spreads = 0
    for value in function.inputs:
        limit = limits.get(value.name)
        bounds = None if limit is None else (resolve(limit[0], sizes), resolve(limit[1], sizes))
        if bounds is not None and bounds[0] > bounds[1]:
            raise IRError(f"input {value.name!r} has no legal value for {sizes}: it must lie in {list(bounds)}")
        if bounds is not None and value.type.rank == 1:
            # In every other probe, neighbours run against each other: an early start meets a long length.
            rising = number % 2 == 1 and spreads % 2 == 0
            inputs[value.name] = spread(*bounds, *value.type.concrete(sizes), rising=rising).to(value.type.dtype)
            spreads += 1
        else:
            inputs[value.name] = _draw(value.type, sizes, bounds, generator, number)
    states = {n: _draw(module.states[n].type, sizes, None, generator, number) for n in used_states(module, function)}
    return Probe(inputs, states, sizes)


def _draw(
    type: TensorType, sizes: Mapping[str, int], bounds: tuple[int, int] | None, generator: torch.Generator, number: int
) -> torch.Tensor:
    shape = type.concrete(sizes)
    if type.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(type.dtype)
    if bounds is None and (type.dtype == torch.bool or len(shape) == 2):
        return left_padding(shape, generator, number % 2).to(type.dtype)
    low, high = (0, FREE_INTEGERS) if bounds is None else bounds
    return torch.randint(low, high + 1, shape, generator=generator).to(type.dtype)


def spread(low: int, high: int, count: int, *, rising: bool) -> torch.Tensor:
    """Integers for the rows of a batch (starts, lengths), spread over their range from one of its ends, so that rows
    differ and the extremes occur."""
    steps = torch.arange(count) * (high - low + 1) // count
    return low + steps if rising else high - steps


def left_padding(shape: tuple[int, ...], generator: torch.Generator, first: int) -> torch.Tensor:
    """True for real elements: row i of the last axis begins with `first` + i false ones, at least one stays true."""
    if len(shape) < 2:
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    rows, length = shape[-2], shape[-1]
    padded = (first + torch.arange(rows)).clamp(max=max(0, length - 1)).unsqueeze(1)
    return (torch.arange(length) >= padded).expand(shape).contiguous()
