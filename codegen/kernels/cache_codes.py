"""Rows of a cache in few bits: how their codes lie in bytes, are read into vectors, and are made.

Codes are centred, so that what is read is a number already: int8 holds -128 ... 127 in a byte, int4 -8 ... 7 in half of
one, fp8 the bits of an E4M3 float. A row is its number times one scale; with zero points it is the distance of its number
from the row's own zero, times the scale. The scale stands behind the codes, then the zero, a byte.

The codes are the encoding's (`ir.encodings`) bit by bit: all quotients are float64 divisions rounded to nearest, ties to
even, as they are there. A row of integers with a NaN has a NaN for its scale; a float of eight bits can be a NaN itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.pointwise.dtypes import loaded, stored
from planish.codegen.tiles.float import Expr, FloatTile

FORMATS = ("int8", "int4", "fp8")
LARGEST_E4M3 = 448.0
HALF_OFFSET = 256.0
"""E4M3 bits moved into a float16 stand for the number over 2^8: their exponents count from 7 and from 15."""
_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
_NAN = 0x7FC00000


@dataclass(frozen=True)
class Codes:
    """How the rows of one cache are held.

    Attributes:
        format: "int8", "int4" or "fp8".
        scale_dtype: float32, float16 or bfloat16.
        zero_points: whether integers are counted from a zero of their row.
    """

    format: str
    scale_dtype: str
    zero_points: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"codes of {self.format} are not supported: use one of {', '.join(FORMATS)}")
        if self.format == "fp8" and self.zero_points:
            raise ValueError("floats of eight bits have no zero points")

    @property
    def per_byte(self) -> int:
        """Codes in a byte."""
        return 2 if self.format == "int4" else 1

    @property
    def scale_bytes(self) -> int:
        """Bytes of a scale."""
        return 4 if self.scale_dtype == "float32" else 2

    @property
    def tail_bytes(self) -> int:
        """Bytes of a row besides its codes."""
        return self.scale_bytes + int(self.zero_points)

    @property
    def largest(self) -> int:
        """The largest integer held is this less one, the smallest its negative."""
        return 8 if self.format == "int4" else 128

    def numbers(self, tile: FloatTile, held: Expr, half: Expr | int) -> Expr:
        """A vector of bytes as float32 numbers, those of the lower (0) or upper (1) half of each for int4."""
        lanes = tile.lanes
        if self.format == "int8":
            return T.cast(T.reinterpret(f"int8x{lanes}", held), f"float32x{lanes}")
        if self.format == "int4":
            # Up to the sign bit and down again.
            up = T.int32(28) - T.cast(half * 4, "int32") if isinstance(half, tirx.Expr) else T.int32(28 - 4 * half)
            moved = T.shift_left(T.cast(held, f"int32x{lanes}"), T.broadcast(up, lanes))
            return T.cast(T.shift_right(moved, T.broadcast(T.int32(28), lanes)), f"float32x{lanes}")
        bits = T.cast(held, f"uint16x{lanes}")
        magnitude = T.bitwise_and(bits, T.broadcast(T.uint16(0x7F), lanes)) * T.broadcast(T.uint16(1 << 7), lanes)
        sign = T.bitwise_and(bits, T.broadcast(T.uint16(0x80), lanes)) * T.broadcast(T.uint16(1 << 8), lanes)
        return tile.widen(T.reinterpret(f"float16x{lanes}", T.bitwise_or(magnitude, sign)), "float16")

    def factor(self, held: Expr) -> Expr:
        """What `numbers` of a row are multiplied with, from the bytes of its scale."""
        if self.scale_dtype == "float32":
            scale = T.reinterpret("float32", held)
        elif self.scale_dtype == "float16":
            scale = T.cast(T.reinterpret("float16", held), "float32")
        else:
            scale = loaded(T.reinterpret("uint16", held), torch.bfloat16)
        return scale * T.float32(HALF_OFFSET) if self.format == "fp8" else scale


class EncodedRow:
    """A row on its way into a cache.

    Args:
        codes: the format.
        size: elements of the row.
        room: elements for which there are places; those past the row hold 0.
        element: the row's elements, float32.
    """

    def __init__(self, codes: Codes, size: int, room: int, element: Callable[[Expr], Expr]) -> None:
        self.codes, self.size, self.room, self._element = codes, size, room, element
        self.numbers = emit.scratch("numbers", room, "int32")
        self._scale = emit.scratch("scale", 1, "float32")
        self._zero = emit.scratch("zero", 1, "int32")

    def encode(self) -> None:
        """Emit the row's numbers, scale and zero."""
        largest = emit.scratch("largest", 1, "int32")
        T.buffer_store(largest, T.int32(0), [0])
        with emit.loop("element", self.size) as e:
            T.buffer_store(largest, T.max(largest[0], _magnitude(self._element(e))), [0])
        with emit.loop("place", self.room) as place:
            T.buffer_store(self.numbers, T.int32(0), [place])
        T.buffer_store(self._zero, T.int32(0), [0])
        if self.codes.format == "fp8":
            self._floats(largest[0])
        else:
            made = self._from_zero if self.codes.zero_points else self._centred
            emit.branch(largest[0] <= T.int32(_INFINITY), lambda: made(largest[0]), self._undefined)

    def byte(self, low: Expr, high: Expr) -> Expr:
        """The byte of the element at place `low`, and of that at `high` where two share one."""
        number = self.numbers[low]
        if self.codes.per_byte == 2:
            number = T.bitwise_or(T.bitwise_and(number, T.int32(15)), T.shift_left(self.numbers[high], T.int32(4)))
        return T.cast(T.bitwise_and(number, T.int32(255)), "uint8")

    def tail(self) -> list[Expr]:
        """The bytes of the scale and of the zero."""
        dtype = getattr(torch, self.codes.scale_dtype)
        kept = stored(self._scale[0], dtype)
        bits = math.hold(T.cast(T.reinterpret(f"uint{8 * self.codes.scale_bytes}", kept), "uint32"))
        scale = [T.cast(T.shift_right(bits, T.uint32(8 * n)), "uint8") for n in range(self.codes.scale_bytes)]
        return [*scale, T.cast(self._zero[0], "uint8")] if self.codes.zero_points else scale

    def _undefined(self) -> None:
        T.buffer_store(self._scale, T.reinterpret("float32", T.int32(_NAN)), [0])

    def _centred(self, largest: Expr) -> None:
        """The first element of largest magnitude becomes the most negative number."""
        peak = emit.scratch("peak", 1)
        T.buffer_store(peak, T.float32(0), [0])
        with emit.loop("element", self.size) as number:
            e = self.size - 1 - number
            T.buffer_store(peak, T.Select(T.EQ(_magnitude(self._element(e)), largest), self._element(e), peak[0]), [0])
        step = self._keep(T.cast(peak[0], "float64") / _opaque(-float(self.codes.largest)))
        self._round(step, T.float64(0), -self.codes.largest, self.codes.largest - 1, 0)

    def _from_zero(self, largest: Expr) -> None:
        """The range of the elements and zero in equal steps, with the step that stands for zero."""
        ends = emit.scratch("ends", 2)
        for end in range(2):
            T.buffer_store(ends, T.float32(0), [end])
        with emit.loop("element", self.size) as e:
            T.buffer_store(ends, T.min(ends[0], self._element(e)), [0])
            T.buffer_store(ends, T.max(ends[1], self._element(e)), [1])
        low, high = (math.hold(T.cast(ends[end], "float64")) for end in range(2))
        steps = 2 * self.codes.largest - 1
        step = self._keep((high - low) / _opaque(float(steps)))
        zero = math.hold(_clamped(_quotient(T.float64(0) - low, step), 0, steps))
        self._round(step, zero, 0, steps, self.codes.largest)
        T.buffer_store(self._zero, T.cast(zero, "int32") - self.codes.largest, [0])

    def _round(self, step: Expr, zero: Expr, low: int, high: int, centre: int) -> None:
        with emit.loop("element", self.size) as e:
            level = _quotient(T.cast(self._element(e), "float64"), step) + zero
            T.buffer_store(self.numbers, T.cast(_clamped(level, low, high), "int32") - centre, [e])

    def _floats(self, largest: Expr) -> None:
        """The largest magnitude becomes 448; the scale is 1 where it would be none, or NaN."""
        peak = T.cast(T.reinterpret("float32", largest), "float64")
        scale = math.hold(T.cast(peak / _opaque(LARGEST_E4M3), "float32"))
        T.buffer_store(self._scale, T.Select(scale > T.float32(0), scale, T.float32(1)), [0])
        step = math.hold(T.cast(self._scale[0], "float64"))
        with emit.loop("element", self.size) as e:
            quotient = math.hold(T.cast(self._element(e), "float64") / step)
            limited = math.hold(math.minimum(quotient, T.float64(LARGEST_E4M3)))
            limited = math.maximum(limited, T.float64(-LARGEST_E4M3))
            T.buffer_store(self.numbers, _e4m3_bits(math.hold(T.cast(limited, "float32"))), [e])

    def _keep(self, scale: Expr) -> Expr:
        """Store a scale, float64, as it will be kept; returns what is left of it, float64."""
        dtype = getattr(torch, self.codes.scale_dtype)
        largest = T.float64(torch.finfo(dtype).max)
        single = T.cast(T.max(T.min(scale, largest), T.float64(0) - largest), "float32")
        T.buffer_store(self._scale, single, [0])
        return math.hold(T.cast(loaded(stored(self._scale[0], dtype), dtype), "float64"))


def _opaque(number: float) -> Expr:
    """A float64 that TVM does not see: it would turn a division by a constant into a product with its reciprocal."""
    return math.hold(T.float64(number))


def _magnitude(value: Expr) -> Expr:
    """The bits of |value|: they are ordered as magnitudes are, NaN last."""
    return T.bitwise_and(T.reinterpret("int32", value), T.int32(_MAGNITUDE))


def _quotient(value: Expr, step: Expr) -> Expr:
    return T.Select(T.EQ(step, T.float64(0)), T.float64(0), value / step)


def _clamped(level: Expr, low: int, high: int) -> Expr:
    """The nearest integer within limits, ties to even, as float64."""
    nearest = current().round_even(math.hold(level))
    return T.max(T.min(nearest, T.float64(high)), T.float64(low))


def _e4m3_bits(value: Expr) -> Expr:
    """The bits (int32) of the E4M3 float nearest to a float32 of at most 448, or NaN, ties to even."""
    bits = math.hold(T.reinterpret("int32", value))
    size = math.hold(T.bitwise_and(bits, T.int32(_MAGNITUDE)))
    # Three bits of the fraction stay, and the exponent counts from 7 instead of 127.
    odd = T.bitwise_and(T.shift_right(size, T.int32(20)), T.int32(1))
    normal = T.shift_right(size + T.int32(0x7FFFF) + odd, T.int32(20)) - T.int32((127 - 7) << 3)
    # Below 2^-6 the numbers are the multiples of 2^-9.
    small = T.cast(current().round_even(math.hold(T.reinterpret("float32", size) * T.float32(2.0**9))), "int32")
    code = T.Select(size < T.int32((127 - 6) << 23), small, normal)
    code = T.Select(size > T.int32(_INFINITY), T.int32(0x7F), code)
    return T.bitwise_or(code, T.bitwise_and(T.shift_right(bits, T.int32(24)), T.int32(0x80)))
