"""Reading the codes of grouped encodings as they are stored."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import Expr
from planish.ir.encodings.packing import BitPacking, Packing, TritPacking

TRITS = (1, 3, 9, 27, 81)


def unit_codes(packing: Packing, values: Expr, row: Expr, unit: Expr) -> list[Expr]:
    """All codes of one unit of a row of packed bytes (rows, bytes), int32."""
    first = unit * packing.unit_bytes
    read = [T.bind(T.cast(values[row, first + byte], "int32")) for byte in range(packing.unit_bytes)]
    if isinstance(packing, TritPacking):
        return [T.truncmod(T.truncdiv(read[0], T.int32(power)), T.int32(3)) for power in TRITS]
    assert isinstance(packing, BitPacking)
    found = []
    for number in range(packing.unit_codes):
        byte, shift = divmod(number * packing.bits, 8)
        code = read[byte] >> shift
        if shift + packing.bits > 8:
            code = T.bitwise_or(code, read[byte + 1] << (8 - shift))
        found.append(T.bitwise_and(code, T.int32((1 << packing.bits) - 1)))
    return found


def code_at(packing: BitPacking, values: Expr, row: Expr, index: Expr) -> Expr:
    """One code of a row of packed bytes (rows, bytes), int32, its index known at run time."""
    bit = emit.bind("bit", index * packing.bits)
    byte, shift = T.truncdiv(bit, 8), T.cast(T.truncmod(bit, 8), "int32")
    code = T.cast(values[row, byte], "int32")
    if 8 % packing.bits:
        # The byte in which the code ends, which may be the one where it begins.
        last = T.truncdiv(bit + packing.bits - 1, 8)
        code = T.bitwise_or(code, T.Select(last > byte, T.cast(values[row, last], "int32") << 8, T.int32(0)))
    return T.bitwise_and(code >> shift, T.int32((1 << packing.bits) - 1))


def trit_at(values: Expr, row: Expr, index: Expr) -> Expr:
    """One code of a row of packed trits (rows, bytes), int32, its index known at run time."""
    packed, digit = T.cast(values[row, T.truncdiv(index, len(TRITS))], "int32"), T.truncmod(index, len(TRITS))
    power = T.int32(TRITS[0])
    for number, other in enumerate(TRITS[1:], start=1):
        power = T.Select(digit >= number, T.int32(other), power)
    return T.truncmod(T.truncdiv(packed, power), T.int32(3))
