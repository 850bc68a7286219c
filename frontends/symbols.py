"""Names for the symbolic sizes of an exported program: the user's own where given, else the input's name and axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from planish.ir import Dim, TensorType, UnsupportedError, symbol
from planish.ir.types import as_dim

Leaves = list[tuple[Any, Any]]


def spec_leaves(example: Any, spec: Any) -> Leaves:
    """Pairs (tensor, its part of the dynamic-shapes specification) in the order in which torch flattens the example."""
    if isinstance(example, torch.Tensor):
        return [(example, spec)]
    if isinstance(example, Mapping):
        parts = [(v, spec.get(k) if isinstance(spec, Mapping) else None) for k, v in example.items()]
    elif isinstance(example, (list, tuple)):
        given = list(spec.values()) if isinstance(spec, Mapping) else spec
        listed = list(given) if isinstance(given, (list, tuple)) else []
        parts = list(zip(example, [*listed, *[None] * (len(example) - len(listed))]))
    else:
        return [(example, None)]
    return [leaf for value, part in parts for leaf in spec_leaves(value, part)]


def dim_names(spec: Any) -> dict[int, str]:
    """The user's name of each axis of one tensor, from its part of the dynamic-shapes specification."""
    axes = spec.items() if isinstance(spec, Mapping) else enumerate(spec) if isinstance(spec, (list, tuple)) else ()
    names = {}
    for axis, dim in axes:
        # Dim.AUTO and Dim.DYNAMIC are hints without a name; a derived Dim (2 * B) is named by what it derives from.
        if isinstance(dim, torch.export.Dim) and type(dim).__name__ != "_StaticDim":
            root = getattr(dim, "root", dim)
            names[axis] = root.__name__
    return names


class SymbolNames:
    """The mapping from an exported program's own symbols to the module's."""

    def __init__(self) -> None:
        self._names: dict[sympy.Symbol, sympy.Symbol] = {}

    def add_input(self, name: str, sizes: Iterable[Any], given: Mapping[int, str]) -> None:
        """Name the symbols that occur in the sizes of one input, unless an earlier input named them already."""
        for axis, size in enumerate(sizes):
            for free in sorted(_expression(size).free_symbols, key=str):
                if free not in self._names:
                    chosen = symbol(given.get(axis, f"{name}_{axis}"))
                    if chosen in self._names.values():
                        chosen = symbol(f"{name}_{axis}")
                    self._names[free] = chosen

    def dim(self, size: Any) -> Dim:
        """A traced size as a dimension; raises UnsupportedError when it depends on the data."""
        if isinstance(size, int):
            return size
        if free_unbacked_symbols(size):
            raise UnsupportedError("a size depends on the values of a tensor")
        return as_dim(_expression(size).xreplace(self._names))

    def ranges(self, constraints: Mapping[sympy.Symbol, Any]) -> tuple[tuple[str, int, int | None], ...]:
        """(name, lowest, highest) of the bounded symbols; highest is None where there is no bound.

        torch takes every size to be at least 2 where it may not ask; programs are used for size 1 too, as they are
        elsewhere, so that a lowest value of 2 counts as none.
        """
        found = []
        for traced, named in self._names.items():
            if traced in constraints:
                low, high = constraints[traced].lower, constraints[traced].upper
                highest = int(high) if high.is_Integer else None
                if low > 2 or highest is not None:
                    found.append((named.name, max(1, int(low)) if low > 2 else 1, highest))
        return tuple(sorted(found))

    def type(self, tensor: torch.Tensor) -> TensorType:
        """The type of a traced tensor."""
        return TensorType(tensor.dtype, tuple(self.dim(s) for s in tensor.shape))


def _expression(size: Any) -> sympy.Expr:
    return sympy.Integer(size) if isinstance(size, int) else sympy.sympify(size.node.expr)
