"""How the IR's dtypes are stored and computed with in compiled code.

bfloat16 lies in memory as the uint16 of its bits, because runtimes and code generators differ in what they know of it;
arithmetic on it and on float16 happens in float32, and each operation's result is rounded to the dtype it is declared
with, as torch does.
"""

from __future__ import annotations

import math

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr
from planish.codegen.math import hold
from planish.ir.types import dtype_name

STORAGE: dict[torch.dtype, str] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "uint16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.uint16: "uint16",
    torch.bool: "bool",
}
"""The dtype of a tensor's elements in memory."""

_HALVES = (torch.float16, torch.bfloat16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of `dtype` are held in registers: float32 for the 16-bit floats."""
    return torch.float32 if dtype in _HALVES else dtype


def loaded(stored: Expr, dtype: torch.dtype) -> Expr:
    """An element as it lies in memory, in its compute dtype; the value is kept."""
    if dtype == torch.bfloat16:
        return T.reinterpret("float32", T.shift_left(T.cast(stored, "uint32"), T.uint32(16)))
    return T.cast(stored, "float32") if dtype == torch.float16 else stored


def stored(value: Expr, dtype: torch.dtype) -> Expr:
    """A value in its compute dtype as an element in memory, rounded to nearest, ties to even."""
    if dtype == torch.bfloat16:
        return _bfloat16_bits(value)
    return T.cast(value, "float16") if dtype == torch.float16 else value


def rounded(value: Expr, dtype: torch.dtype) -> Expr:
    """A value in the compute dtype of `dtype`, rounded to `dtype`. Must be called where statements are emitted."""
    return loaded(stored(hold(value), dtype), dtype) if dtype in _HALVES else value


def _bfloat16_bits(value: Expr) -> Expr:
    # Nothing is bound to a variable here: the value may be one that only a guarded branch may read.
    bits = T.reinterpret("uint32", value)
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(16)), T.uint32(1))
    nearest = T.shift_right(bits + T.uint32(0x7FFF) + odd, T.uint32(16))
    # Rounding would carry a NaN with only low bits set into infinity.
    is_nan = T.bitwise_and(bits, T.uint32(0x7FFFFFFF)) > T.uint32(0x7F800000)
    quiet = T.bitwise_or(T.shift_right(bits, T.uint32(16)), T.uint32(0x40))
    return T.cast(T.Select(is_nan, quiet, nearest), "uint16")


def is_nan(x: Expr, dtype: torch.dtype) -> Expr:
    """Whether a value in its compute dtype is NaN, by its bits: TVM simplifies `x != x` away."""
    if not dtype.is_floating_point:
        return tirx.const(False, "bool")
    if isinstance(x, tirx.FloatImm):
        # A constant has no bits to look at in C.
        return tirx.const(math.isnan(float(x.value)), "bool")
    if compute_dtype(dtype) == torch.float64:
        bits = T.bitwise_and(T.reinterpret("uint64", x), tirx.const(0x7FFFFFFFFFFFFFFF, "uint64"))
        return bits > tirx.const(0x7FF0000000000000, "uint64")
    return T.bitwise_and(T.reinterpret("uint32", x), tirx.const(0x7FFFFFFF, "uint32")) > tirx.const(
        0x7F800000, "uint32"
    )


def convert(value: Expr, source: torch.dtype, target: torch.dtype) -> Expr:
    """A value of dtype `source` as one of dtype `target`, both in their compute dtypes: torch's `to`."""
    if source == target:
        return value
    if target == torch.bool:
        differs = T.NE(value, literal(0, source))
        return T.Or(differs, is_nan(value, source)) if source.is_floating_point else differs
    if source == torch.bool:
        return T.Select(value, literal(1, target), literal(0, target))
    cast = value
    if compute_dtype(source) != compute_dtype(target):
        cast = T.cast(value, STORAGE[compute_dtype(target)])
    return loaded(stored(cast, target), target) if target in _HALVES else cast


def literal(value: bool | int | float, dtype: torch.dtype) -> Expr:
    """A constant in the compute dtype of `dtype`, rounded to it."""
    if dtype == torch.bool:
        return tirx.const(bool(value), "bool")
    if dtype.is_floating_point:
        value = torch.tensor(value, dtype=dtype).item()
    name = STORAGE[compute_dtype(dtype)]
    return tirx.const(value, name)


def describe(dtype: torch.dtype) -> str:
    """The dtype's short name, for messages."""
    return dtype_name(dtype)
