"""Tensor types: a dtype and a shape whose dimensions are integers or symbolic expressions.

Symbols are sympy symbols made by `symbol`, always positive integers, and compared by name. Expressions over them are
sympy's; `resolve` turns them into integers once the symbols have values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from planish.ir.dims import canonical, format_dim
from planish.ir.errors import IRError

Dim: TypeAlias = "int | sympy.Expr"
Bindings: TypeAlias = Mapping[str, int]

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_DTYPE_WORDS = frozenset(DTYPES)


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype, as the text form writes it; raises IRError for a dtype the IR does not hold."""
    try:
        return DTYPE_NAMES[dtype]
    except KeyError:
        raise IRError(f"dtype {dtype} is not held by the IR; cast to one of {', '.join(DTYPES)} first") from None


def symbol(name: str) -> sympy.Symbol:
    """The symbolic dimension of that name: a positive integer, equal to every other symbol of the name."""
    return sympy.Symbol(name, integer=True, positive=True)


def as_dim(value: Any) -> Dim:
    """A Python or sympy integer as `int`, any other integer-valued sympy expression as it is."""
    if isinstance(value, bool):
        raise IRError("a dimension must be an integer or a symbolic expression, not a bool")
    if isinstance(value, int):
        return value
    if isinstance(value, sympy.Integer):
        return int(value)
    if isinstance(value, sympy.Expr):
        return canonical(value)
    raise IRError(f"a dimension must be an integer or a symbolic expression, not {type(value).__name__}")


def dim_text(dim: Dim) -> str:
    """The dimension as the text form writes it."""
    return format_dim(dim, _DTYPE_WORDS)


def floor_div(a: Dim, b: Dim) -> Dim:
    """a // b, in the one form that exported programs and type rules share."""
    return a // b if isinstance(a, int) and isinstance(b, int) else as_dim(FloorDiv(a, b))


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are equal for all values of their symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(a == b) or _vanishes(sympy.sympify(a - b))


@lru_cache(maxsize=1 << 14)
def _vanishes(difference: sympy.Expr) -> bool:
    # Simplifying takes milliseconds, and the same few dimensions are compared all the time.
    return bool(sympy.expand(difference) == 0) or bool(sympy.simplify(difference) == 0)


def resolve(dim: Dim, bindings: Bindings) -> int:
    """The integer that a dimension stands for; raises IRError when a symbol has no value."""
    if isinstance(dim, int):
        return dim
    names = _names(dim)
    missing = [name for name in names if name not in bindings]
    if missing:
        raise IRError(f"dimension {dim} cannot be computed: no value is known for {', '.join(missing)}")
    return _value(dim, tuple(bindings[name] for name in names))


@lru_cache(maxsize=1 << 14)
def _names(dim: sympy.Expr) -> tuple[str, ...]:
    return tuple(sorted(s.name for s in dim.free_symbols))


@lru_cache(maxsize=1 << 14)
def _value(dim: sympy.Expr, values: tuple[int, ...]) -> int:
    # Substituting takes a tenth of a millisecond, and a program's few dimensions are resolved at every node.
    bindings = dict(zip(_names(dim), values, strict=True))
    value = dim.subs({s: bindings[s.name] for s in dim.free_symbols})
    if not value.is_integer:
        raise IRError(f"dimension {dim} is {value} for {bindings}, which is not an integer")
    return int(value)


def substitute(dim: Dim, replacements: Mapping[str, Dim]) -> Dim:
    """The dimension with symbols replaced by other dimensions."""
    if isinstance(dim, int):
        return dim
    return as_dim(dim.subs({s: replacements[s.name] for s in dim.free_symbols if s.name in replacements}))


@dataclass(frozen=True)
class TensorType:
    """A tensor's dtype and shape. Two types are equal when every pair of dimensions is, for all values of the symbols."""

    dtype: torch.dtype
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        dtype_name(self.dtype)
        object.__setattr__(self, "shape", tuple(as_dim(d) for d in self.shape))
        for dim in self.shape:
            if isinstance(dim, int) and dim < 0:
                raise IRError(f"a dimension cannot be negative: {self.shape}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the symbols that occur in the shape."""
        return frozenset(s.name for d in self.shape if not isinstance(d, int) for s in d.free_symbols)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorType):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and self.rank == other.rank
            and all(same_dim(a, b) for a, b in zip(self.shape, other.shape))
        )

    def __hash__(self) -> int:
        return hash((self.dtype, self.rank))

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)}[{', '.join(dim_text(d) for d in self.shape)}]"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def with_dtype(self, dtype: torch.dtype) -> TensorType:
        return TensorType(dtype, self.shape)

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def concrete(self, bindings: Bindings) -> tuple[int, ...]:
        """The shape as integers, given values for the symbols."""
        return tuple(resolve(d, bindings) for d in self.shape)

    def substitute(self, replacements: Mapping[str, Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(substitute(d, replacements) for d in self.shape))


def bind_shape(declared: TensorType, shape: Iterable[int], bindings: dict[str, int], what: str) -> None:
    """Match a concrete shape against a declared one, adding the symbols' values to `bindings`.

    Raises IRError naming `what` when the rank, a fixed dimension or an already bound symbol disagrees.
    """
    actual = tuple(shape)
    if len(actual) != declared.rank:
        raise IRError(f"{what} has shape {list(actual)}, but {declared} was declared: the ranks differ")
    for axis, (dim, size) in enumerate(zip(declared.shape, actual)):
        if isinstance(dim, sympy.Symbol) and dim.name not in bindings:
            if size < 1:
                raise IRError(f"{what} has shape {list(actual)}, but axis {axis} ({dim}) must be at least 1")
            bindings[dim.name] = size
    for axis, (dim, size) in enumerate(zip(declared.shape, actual)):
        free = set() if isinstance(dim, int) else {s.name for s in dim.free_symbols}
        if free <= bindings.keys() and resolve(dim, bindings) != size:
            raise IRError(f"{what} has shape {list(actual)}, but {declared} was declared: axis {axis} differs")
