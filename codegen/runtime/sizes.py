"""Tensor types as the manifest writes them, such as `f32[B, 3, (C + 15) // 16]`, and the sizes that they state.

The manifest's dimensions read as Python expressions over symbols. They are parsed into Python's own syntax tree and
computed node by node; nothing is ever executed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from planish.codegen.runtime.errors import input_error

DTYPES: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i64": np.int64, "i32": np.int32,
    "i16": np.int16, "i8": np.int8, "u8": np.uint8, "bool": np.bool_,
}  # fmt: skip
"""What holds the elements of each dtype; bfloat16 as its bits, which numpy has no dtype for."""

_TYPE = re.compile(r"(\w+)\[(.*)\]")
_BINARY: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}  # fmt: skip
_CALLS: dict[str, Callable[..., int]] = {
    "Max": max, "Min": min, "Mod": operator.mod, "PythonMod": operator.mod, "CleanDiv": operator.floordiv,
    "ModularIndexing": lambda base, divisor, modulus: base // divisor % modulus,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's dtype, by its short name, and its dimensions."""

    dtype: str
    dims: tuple[ast.expr, ...]
    text: str

    @cached_property
    def symbols(self) -> tuple[frozenset[str], ...]:
        """The symbols in each dimension."""
        return tuple(
            frozenset(n.id for n in ast.walk(dim) if isinstance(n, ast.Name) and n.id not in _CALLS)
            for dim in self.dims
        )

    @property
    def stored(self) -> Any:
        """The numpy dtype of its elements."""
        return DTYPES[self.dtype]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given values of the symbols."""
        return tuple(_compute(d, sizes) for d in self.dims)

    def bind(self, shape: Sequence[int], sizes: dict[str, int], what: str) -> None:
        """Check a shape, adding the values of symbols that it states to `sizes`.

        Raises:
            InputError: naming `what` when the rank, a fixed dimension or a known symbol disagrees.
        """
        if len(shape) != len(self.dims):
            raise input_error(f"{what} has shape {list(shape)}, but {self.text} was declared: the ranks differ")
        for axis, (dim, size) in enumerate(zip(self.dims, shape)):
            if isinstance(dim, ast.Name) and dim.id not in sizes:
                if size < 1:
                    raise input_error(f"{what} has shape {list(shape)}, but axis {axis} ({dim.id}) must be at least 1")
                sizes[dim.id] = size
        for axis, (dim, size) in enumerate(zip(self.dims, shape)):
            if self.symbols[axis] <= sizes.keys() and _compute(dim, sizes) != size:
                raise input_error(f"{what} has shape {list(shape)}, but {self.text} was declared: axis {axis} differs")


def parse_type(text: str) -> TensorSpec:
    """A type as the manifest writes it.

    Raises:
        InputError: for anything else.
    """
    found = _TYPE.fullmatch(text)
    try:
        if found is None or found[1] not in DTYPES:
            raise ValueError("it names no dtype")
        dims = ast.parse(f"({found[2]},)" if found[2] else "()", mode="eval").body
        assert isinstance(dims, ast.Tuple)
        return TensorSpec(found[1], tuple(dims.elts), text)
    except (SyntaxError, ValueError, AssertionError) as error:
        raise input_error(f"the manifest holds no valid type in {text!r}: {error}") from None


def _compute(dim: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, ast.Constant) and isinstance(dim.value, int):
        return dim.value
    if isinstance(dim, ast.Name) and dim.id in sizes:
        return sizes[dim.id]
    if isinstance(dim, ast.BinOp) and type(dim.op) in _BINARY:
        return _BINARY[type(dim.op)](_compute(dim.left, sizes), _compute(dim.right, sizes))
    if isinstance(dim, ast.UnaryOp) and isinstance(dim.op, ast.USub):
        return -_compute(dim.operand, sizes)
    if isinstance(dim, ast.Call) and isinstance(dim.func, ast.Name) and dim.func.id in _CALLS:
        return _CALLS[dim.func.id](*(_compute(a, sizes) for a in dim.args))
    raise input_error(f"the size {ast.unparse(dim)!r} cannot be computed from {dict(sizes)}")
