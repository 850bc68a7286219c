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
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr, FloatTile

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
        return self.factor_of(T.reinterpret(STORAGE_DTYPES[self.scale_dtype], held))

    def factor_of(self, scale: Expr) -> Expr:
        """The same from a scale as it is stored."""
        scale = loaded(scale, getattr(torch, self.scale_dtype))
        return scale * T.float32(HALF_OFFSET) if self.format == "fp8" else scale


class Rounding:
    """How the elements of one row become numbers: its scale and its zero, found from what counts of the row.

    A row of integers with a NaN has a NaN for its scale, and 0 for all numbers.
    """

    def __init__(self, codes: Codes) -> None:
        self.codes = codes
        self._scale = emit.scratch("scale", 1, "float32")
        self._step = emit.scratch("step", 1, "float64")
        self._zero = emit.scratch("zero", 1, "float64")

    def centred(self, peak: Expr, largest: Expr) -> None:
        """Emit the scale that makes an element, the first of largest magnitude, the most negative number."""
        self._keep(T.cast(peak, "float64") / _opaque(-float(self.codes.largest)), largest)
        T.buffer_store(self._zero, T.float64(0), [0])

    def from_zero(self, low: Expr, high: Expr, largest: Expr) -> None:
        """Emit equal steps from `low` to `high`, the range of the elements and zero, and the step that stands for zero."""
        low, high = (math.hold(T.cast(end, "float64")) for end in (low, high))
        self._keep((high - low) / _opaque(float(self._steps)), largest)
        zero = math.hold(_clamped(_quotient(T.float64(0) - low, self._step[0]), 0, self._steps))
        T.buffer_store(self._zero, T.Select(_finite(largest), zero, T.float64(self.codes.largest)), [0])

    def floats(self, largest: Expr) -> None:
        """Emit the scale that makes the largest magnitude 448; it is 1 where it would be none, or NaN."""
        peak = T.cast(T.reinterpret("float32", largest), "float64")
        scale = math.hold(T.cast(peak / _opaque(LARGEST_E4M3), "float32"))
        T.buffer_store(self._scale, T.Select(scale > T.float32(0), scale, T.float32(1)), [0])
        T.buffer_store(self._step, T.cast(self._scale[0], "float64"), [0])

    def number(self, element: Expr) -> Expr:
        """The number (int32) of an element."""
        if self.codes.format == "fp8":
            quotient = math.hold(T.cast(element, "float64") / self._step[0])
            limited = math.hold(math.minimum(quotient, T.float64(LARGEST_E4M3)))
            limited = math.maximum(limited, T.float64(-LARGEST_E4M3))
            return _e4m3_bits(math.hold(T.cast(limited, "float32")))
        level = _quotient(T.cast(element, "float64"), self._step[0]) + self._zero[0]
        if self.codes.zero_points:
            return T.cast(_clamped(level, 0, self._steps), "int32") - self.codes.largest
        return T.cast(_clamped(level, -self.codes.largest, self.codes.largest - 1), "int32")

    def byte(self, low: Expr, high: Expr) -> Expr:
        """The byte of a number, or of two where two share one."""
        if self.codes.per_byte == 2:
            low = T.bitwise_or(T.bitwise_and(low, T.int32(15)), T.shift_left(high, T.int32(4)))
        return T.cast(T.bitwise_and(low, T.int32(255)), "uint8")

    def tail(self) -> list[Expr]:
        """The bytes of the scale and of the zero."""
        dtype = getattr(torch, self.codes.scale_dtype)
        kept = stored(self._scale[0], dtype)
        bits = math.hold(T.cast(T.reinterpret(f"uint{8 * self.codes.scale_bytes}", kept), "uint32"))
        scale = [T.cast(T.shift_right(bits, T.uint32(8 * n)), "uint8") for n in range(self.codes.scale_bytes)]
        zero = T.cast(self._zero[0], "int32") - self.codes.largest
        return [*scale, T.cast(T.bitwise_and(zero, T.int32(255)), "uint8")] if self.codes.zero_points else scale

    @property
    def _steps(self) -> int:
        return 2 * self.codes.largest - 1

    def _keep(self, scale: Expr, largest: Expr) -> None:
        """Store a scale, float64, as it will be kept, and what is left of it, float64; without one the step is 0."""
        dtype = getattr(torch, self.codes.scale_dtype)
        limit = T.float64(torch.finfo(dtype).max)
        single = math.hold(T.cast(T.max(T.min(scale, limit), T.float64(0) - limit), "float32"))
        # CUDA reinterprets what has an address.
        nan = T.reinterpret("float32", math.hold(T.int32(_NAN)))
        T.buffer_store(self._scale, T.Select(_finite(largest), single, nan), [0])
        left = math.hold(T.cast(loaded(stored(single, dtype), dtype), "float64"))
        T.buffer_store(self._step, T.Select(_finite(largest), left, T.float64(0)), [0])


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
        self.rounding = Rounding(codes)

    def encode(self) -> None:
        """Emit the row's numbers, scale and zero."""
        largest = emit.scratch("largest", 1, "int32")
        T.buffer_store(largest, T.int32(0), [0])
        with emit.loop("element", self.size) as e:
            T.buffer_store(largest, T.max(largest[0], magnitude(self._element(e))), [0])
        if self.codes.format == "fp8":
            self.rounding.floats(largest[0])
        elif self.codes.zero_points:
            self._find_ends(largest[0])
        else:
            self._find_peak(largest[0])
        with emit.loop("place", self.room) as place:
            T.buffer_store(self.numbers, T.int32(0), [place])
        with emit.loop("element", self.size) as e:
            T.buffer_store(self.numbers, self.rounding.number(self._element(e)), [e])

    def byte(self, low: Expr, high: Expr) -> Expr:
        """The byte of the element at place `low`, and of that at `high` where two share one."""
        return self.rounding.byte(self.numbers[low], self.numbers[high] if self.codes.per_byte == 2 else T.int32(0))

    def _find_peak(self, largest: Expr) -> None:
        peak = emit.scratch("peak", 1)
        T.buffer_store(peak, T.float32(0), [0])
        with emit.loop("element", self.size) as number:
            e = self.size - 1 - number
            T.buffer_store(peak, T.Select(T.EQ(magnitude(self._element(e)), largest), self._element(e), peak[0]), [0])
        self.rounding.centred(peak[0], largest)

    def _find_ends(self, largest: Expr) -> None:
        ends = emit.scratch("ends", 2)
        for end in range(2):
            T.buffer_store(ends, T.float32(0), [end])
        with emit.loop("element", self.size) as e:
            T.buffer_store(ends, T.min(ends[0], self._element(e)), [0])
            T.buffer_store(ends, T.max(ends[1], self._element(e)), [1])
        self.rounding.from_zero(ends[0], ends[1], largest)


def _finite(largest: Expr) -> Expr:
    """Whether a row has no NaN, by the bits of its largest magnitude."""
    return largest <= T.int32(_INFINITY)


def _opaque(number: float) -> Expr:
    """A float64 that TVM does not see: it would turn a division by a constant into a product with its reciprocal."""
    return math.hold(T.float64(number))


def magnitude(value: Expr) -> Expr:
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
