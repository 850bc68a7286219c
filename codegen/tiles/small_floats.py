"""Floats of four and eight bits as float32, exactly, one or a vector of them: see `ir/encodings/float_blocks.py`."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.tiles.float import Expr


def _like(dtype: str, value: Expr) -> str:
    """The dtype with as many lanes as ``value`` has."""
    lanes = math.lanes_of(value)
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _every(number: Expr, value: Expr) -> Expr:
    lanes = math.lanes_of(value)
    return number if lanes == 1 else T.broadcast(number, lanes)


def e2m1_magnitude(codes: Expr) -> Expr:
    """The magnitudes (float32) of four-bit floats from the three lowest bits of uint32.

    Moved into place, exponent and mantissa are those of a float32 but for an exponent of zero, where 0.5 and 0.75 stand for 0
    and 0.5: with f for what stands there, 2 f - 1, which is larger than f from 1 on and smaller below.
    """
    small = T.shift_left(T.bitwise_and(codes, _every(T.uint32(7), codes)), _every(T.uint32(22), codes))
    half = math.hold(T.reinterpret(_like("float32", codes), small + _every(T.uint32(0x3F000000), codes)))
    return math.minimum(half, math.hold(half + half - math.constant(1.0, half)))


def e4m3(bits: Expr) -> Expr:
    """The numbers (float32) of E4M3 floats in uint8, NaN excepted: float16 has their fields but for a smaller bias."""
    wide = T.cast(T.reinterpret(_like("int8", bits), bits), _like("int16", bits))
    # Two bits hold the sign then, of which float16 has the upper one.
    half = T.bitwise_and(T.shift_left(wide, _every(T.int16(7), bits)), _every(T.int16(~0x4000), bits))
    return T.cast(T.reinterpret(_like("float16", bits), half), _like("float32", bits)) * _every(T.float32(256), bits)


def e8m0(bits: Expr) -> Expr:
    """The powers of two (float32) of E8M0 exponents in uint8, NaN excepted."""
    exponent = T.shift_left(T.cast(bits, _like("uint32", bits)), _every(T.uint32(23), bits))
    # The lowest one has no exponent of its own in float32: 2^-127 is a half of the smallest that has.
    lowest = _every(T.uint32(0x00400000), bits)
    return T.reinterpret(_like("float32", bits), T.max(exponent, lowest))


def e2m1(codes: Expr) -> Expr:
    """The numbers (float32) of four-bit floats in uint32, of which the four lowest bits count."""
    sign = T.shift_left(T.bitwise_and(codes, _every(T.uint32(8), codes)), _every(T.uint32(28), codes))
    bits = T.bitwise_or(T.reinterpret(_like("uint32", codes), e2m1_magnitude(codes)), sign)
    return T.reinterpret(_like("float32", codes), bits)
