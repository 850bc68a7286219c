"""Symbolic dimensions as TIR expressions.

The IR's sizes are sympy expressions over named symbols; a kernel or a Relax function has one int64 variable for each
name. Exported programs bring torch's own integer functions, so those are translated too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, TypeAlias

import sympy
from torch.utils._sympy import functions
from tvm import tirx

from planish.ir import Dim, UnsupportedError

Expr: TypeAlias = Any
"""A TIR expression; TVM publishes no types."""


def constant(value: int) -> Expr:
    """An int64 constant."""
    return tirx.IntImm("int64", value)


def ceil_div(a: Expr, b: Expr) -> Expr:
    """a / b rounded up, for sizes."""
    return tirx.floordiv(a + b - 1, b)


class Symbols:
    """The int64 variables that stand for symbols inside one function."""

    def __init__(self) -> None:
        self.variables: dict[str, Expr] = {}

    def variable(self, name: str) -> Expr:
        """The variable of that symbol, made on first use."""
        if name not in self.variables:
            self.variables[name] = tirx.Var(name, "int64")
        return self.variables[name]

    def size(self, dim: Dim) -> Expr:
        """A dimension as an int64 expression.

        Raises:
            UnsupportedError: for a function of sizes that has no integer form here.
        """
        if isinstance(dim, int):
            return constant(dim)
        if isinstance(dim, sympy.Symbol):
            return self.variable(dim.name)
        if dim.is_Integer:
            return constant(int(dim))
        numerator, denominator = sympy.fraction(sympy.together(dim)) if dim.has(sympy.Rational) else (dim, 1)
        if denominator != 1:
            # A size is an integer for every value of its symbols, so this quotient has no remainder.
            return tirx.floordiv(self.size(numerator), self.size(denominator))
        if dim.is_Pow and dim.exp.is_Integer and dim.exp > 0:
            return reduce(operator.mul, [self.size(dim.base)] * int(dim.exp))
        if dim.func in _ROUNDED:
            numerator, denominator = sympy.fraction(sympy.together(dim.args[0]))
            return _ROUNDED[dim.func](self.size(numerator), self.size(denominator))
        if dim.func not in _FUNCTIONS:
            raise UnsupportedError(
                f"the size {dim} cannot be computed by compiled code: {dim.func.__name__} is unknown"
            )
        return _FUNCTIONS[dim.func](*(self.size(a) for a in dim.args))

    def shape(self, dims: Iterable[Dim]) -> tuple[Expr, ...]:
        return tuple(self.size(d) for d in dims)


def _fold(combine: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    return lambda *args: reduce(combine, args)


_FUNCTIONS: Mapping[Any, Callable[..., Expr]] = {
    sympy.Add: _fold(operator.add),
    sympy.Mul: _fold(operator.mul),
    sympy.Max: _fold(tirx.max),
    sympy.Min: _fold(tirx.min),
    sympy.Mod: tirx.floormod,
    functions.Max: _fold(tirx.max),
    functions.Min: _fold(tirx.min),
    functions.Mod: tirx.floormod,
    functions.PythonMod: tirx.floormod,
    functions.FloorDiv: tirx.floordiv,
    functions.CleanDiv: tirx.floordiv,
    functions.CeilDiv: ceil_div,
    functions.ModularIndexing: lambda base, divisor, modulus: tirx.floormod(tirx.floordiv(base, divisor), modulus),
}
_ROUNDED: Mapping[Any, Callable[[Expr, Expr], Expr]] = {sympy.floor: tirx.floordiv, sympy.ceiling: ceil_div}


def product(dims: Iterable[Dim]) -> Dim:
    """The product of some dimensions: 1 for none."""
    total: Any = reduce(operator.mul, dims, 1)
    return int(total) if isinstance(total, (int, sympy.Integer)) else total
