"""Linear layer in blocks on a weight of codes, which lies as its encoding stores it and is decoded in registers.

An element is its level times the scale of its group, rounded to float32, and enters the chains of `float_gemv` and
`float_gemm` as if it had been stored so. A scale of the whole weight, or of an output feature, multiplies the sum, and with a
bias that is one more fused multiply-add.

A lane of few rows reads 16 codes at once where so many take whole words and share a scale, and one code at a time elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks import linear_rows
from planish.codegen.kernels.blocks.float_gemv import Matrix
from planish.codegen.kernels.blocks.linear_rows import LinearRows
from planish.codegen.kernels.codes import code_at, trit_at
from planish.codegen.kernels.linear_decoded_packing import Blocked, group_of
from planish.codegen.pointwise.dtypes import STORAGE, loaded
from planish.codegen.simt.block import Block, Registers
from planish.codegen.tiles.float import Expr
from planish.codegen.tiles.small_floats import e2m1, e4m3, e8m0
from planish.ir import Float8, Grouped, MxFp4, NvFp4, TensorType
from planish.ir.encodings.float_blocks import FOURS
from planish.ir.encodings.packing import BitPacking, Packing

RUN = 16
"""Codes that a lane reads at once."""
SCHEDULE = f"{linear_rows.SCHEDULE}; codes decoded in registers"


@dataclass(frozen=True)
class DecodedBlocks:
    """One kernel.

    Attributes:
        in_features, out_features: K and N.
        encoding: of the weight.
        bias: whether the kernel takes a float32 bias (N,).
        rows: M, or None when only the call knows it.
        multiprocessors: of the machine, each of which should have work.
    """

    in_features: int
    out_features: int
    encoding: Blocked | Float8
    bias: bool
    rows: int | None
    multiprocessors: int

    @property
    def stored(self) -> dict[str, TensorType]:
        """The weight's tensors as the kernel takes them: those of the encoding, scales of sums in one dimension."""
        type = TensorType(torch.float32, (self.out_features, self.in_features))
        fields = self.encoding.layout(type)
        if isinstance(self.encoding, NvFp4):
            fields["tensor_scale"] = TensorType(torch.float32, (1,))
        if isinstance(self.encoding, Float8):
            fields["scales"] = TensorType(torch.float32, (self.out_features,))
        return fields


def linear_decoded(config: DecodedBlocks) -> Any:
    """The PrimFunc ``(x (M, K), the tensors of config.stored, [bias (N,)], y (M, N))``; x, bias and y are float32."""
    ins, outs, encoding = config.in_features, config.out_features, config.encoding

    def body() -> None:
        rows = emit.symbol("rows") if config.rows is None else config.rows
        x = emit.argument("x", (rows, ins), "float32")
        stored = {
            field: emit.argument(field, kind.concrete({}), STORAGE[kind.dtype]) for field, kind in config.stored.items()
        }
        bias = emit.argument("bias", (outs,), "float32") if config.bias else None
        y = emit.argument("y", (rows, outs), "float32")

        def store(row: Expr, column: Expr, value: Expr) -> None:
            if isinstance(encoding, NvFp4 | Float8):
                scale = stored["tensor_scale"][0] if isinstance(encoding, NvFp4) else stored["scales"][column]
                value = value * scale if bias is None else math.fma(value, scale, bias[column])
            elif bias is not None:
                value = value + bias[column]
            T.buffer_store(y, value, [row, column])

        elements = _Elements(encoding, stored, ins)
        matrix = _Runs(elements) if elements.has_runs else _Singles(elements)
        LinearRows(x, rows, outs, ins, matrix, elements.element, store, config.multiprocessors).launch()

    return emit.prim_func("linear_decoded", body)


class _Elements:
    """The elements of one weight."""

    def __init__(self, encoding: Blocked | Float8, stored: Mapping[str, Expr], depth: int) -> None:
        self.encoding, self.stored, self.depth = encoding, stored, depth
        self.packing: Packing = encoding.packing if isinstance(encoding, Grouped) else FOURS
        if isinstance(encoding, Float8):
            self.packing = BitPacking(8)
        self.group = depth if isinstance(encoding, Float8) else group_of(encoding)

    @property
    def has_runs(self) -> bool:
        """Whether RUN codes take whole words and have one scale."""
        whole = isinstance(self.packing, BitPacking) and self.packing.bits in (2, 4, 8)
        return whole and self.group % RUN == 0

    @property
    def zero_points(self) -> bool:
        return "zeros" in self.stored

    def element(self, column: Expr, k: Expr) -> Expr:
        """One element, read by itself. What is past the depth is some other one."""
        k, values = math.hold(T.min(k, T.int64(self.depth - 1))), self.stored["values"]
        if isinstance(self.encoding, Float8):
            return e4m3(values[column, k])
        code = code_at(self.packing, values, column, k) if isinstance(self.packing, BitPacking) else None
        code = math.hold(trit_at(values, column, k) if code is None else code)
        group = math.hold(T.truncdiv(k, T.int64(self.group)))
        return self.scaled(self.level(code, self.zero(column, group)), self.scale(column, group))

    def level(self, code: Expr, zero: Expr | None) -> Expr:
        """What a code (int32) stands for, as float32."""
        encoding = self.encoding
        if isinstance(encoding, Float8):
            return e4m3(T.cast(code, "uint8"))
        if not isinstance(encoding, Grouped):
            return e2m1(T.cast(code, "uint32"))
        level = code * encoding.grid.step + encoding.grid.first
        return T.cast(level if zero is None else level - zero, "float32")

    def zero(self, column: Expr, group: Expr) -> Expr | None:
        """The zero point of a group as int32, or None."""
        if not self.zero_points:
            return None
        assert isinstance(self.packing, BitPacking)
        return math.hold(code_at(self.packing, self.stored["zeros"], column, group))

    def scale(self, column: Expr, group: Expr) -> Expr | None:
        """The scale of a group as float32, or None where there are no groups."""
        encoding, scales = self.encoding, self.stored["scales"]
        if isinstance(encoding, Float8):
            return None
        if isinstance(encoding, Grouped):
            return loaded(scales[column, group], encoding.scale_dtype)
        return (e8m0 if isinstance(encoding, MxFp4) else e4m3)(scales[column, group])

    def scaled(self, level: Expr, scale: Expr | None) -> Expr:
        """An element."""
        return level if scale is None else level * scale


class _Singles(Matrix):
    """One element at a time, decoded when it is read."""

    run, words = 1, 1

    def __init__(self, elements: _Elements) -> None:
        self.elements = elements

    def read(self, block: Block, registers: Registers, at: int, column: Expr, k: Expr) -> None:
        registers[at] = T.reinterpret("uint32", math.hold(self.elements.element(column, k)))

    def value(self, registers: Registers, at: int, of_run: int) -> Expr:
        return T.reinterpret("float32", registers[at])


class _Runs(Matrix):
    """Words of codes, behind them their scale, and their zero point."""

    run = RUN

    def __init__(self, elements: _Elements) -> None:
        self.elements = elements
        assert isinstance(elements.packing, BitPacking)
        self.bits = elements.packing.bits
        self.codes = RUN * self.bits // 32
        self.words = self.codes + (not isinstance(elements.encoding, Float8)) + elements.zero_points

    def read(self, block: Block, registers: Registers, at: int, column: Expr, k: Expr) -> None:
        elements = self.elements
        first = T.truncdiv(k * self.bits, T.int64(8))
        block.load_vector(registers, at, self.codes, elements.stored["values"], (column, first))
        group = math.hold(T.truncdiv(k, T.int64(elements.group)))
        scale, zero = elements.scale(column, group), elements.zero(column, group)
        if scale is not None:
            registers[at + self.codes] = T.reinterpret("uint32", scale)
        if zero is not None:
            registers[at + self.codes + 1] = T.reinterpret("uint32", zero)

    def value(self, registers: Registers, at: int, of_run: int) -> Expr:
        elements = self.elements
        word, place = divmod(of_run * self.bits, 32)
        code = T.bitwise_and(T.shift_right(registers[at + word], T.uint32(place)), T.uint32((1 << self.bits) - 1))
        zero = T.reinterpret("int32", registers[at + self.codes + 1]) if elements.zero_points else None
        level = elements.level(T.cast(code, "int32"), zero)
        if isinstance(elements.encoding, Float8):
            return level
        return elements.scaled(level, T.reinterpret("float32", registers[at + self.codes]))
