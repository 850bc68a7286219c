"""One linear layer of few bits as blocks of threads see it: its arguments, how its weight lies, how codes become operands.

A *panel* is 32 output features, one to a lane of a warp. Codes lie in the planes and steps of
`kernels/linear_low_bit_packing.py`, with four bytes of an output feature to a load, so that a warp reads 128 bytes together
and a shift and a mask give four codes as bytes. A group is filled up to whole steps; the activations that meet what fills it
are zero.

An operand is ``step * code``, or ``code - 128`` for codes of 8 bits, as the bytes of products have signs. A level is an
operand plus the *offset* of its group: ``sum x level = sum x operand + offset sum x``, exactly, in int32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_config import LARGEST_SUM, require_sums_fit
from planish.codegen.kernels.linear_low_bit_packing import BlockLayout, code_bits, has_zero_points, unpacked
from planish.codegen.pointwise.dtypes import STORAGE, loaded
from planish.codegen.simt.block import WARP, Block, Registers
from planish.codegen.stored import as_stored
from planish.codegen.tiles.float import Expr
from planish.ir import Grouped

WORD = 4
"""Codes in a word of operands."""
SLOT = 32
"""Codes that a product of tensor cores takes of each output feature, and a multiple of every step."""
ONES = 0x01010101
_SIGNED = 128


@dataclass(frozen=True)
class Panels(BlockLayout):
    """The codes of one weight, in blocks of one group of one panel."""

    encoding: Grouped
    lanes: int = WARP
    depth: int = WORD
    vectors: int = 1
    scale_bytes: int = 0
    zero_points: bool = False

    @property
    def bits(self) -> int:
        return code_bits(self.encoding)

    @property
    def span(self) -> int:
        """Elements of a step."""
        return self.depth * self.products

    @property
    def group(self) -> int:
        """Elements of a group, filled up to whole steps."""
        return -(-self.encoding.group // self.span) * self.span

    @property
    def load_bytes(self) -> int:
        """Bytes of a step."""
        return self.loads * self.vector_bytes


@dataclass(frozen=True)
class BlockLowBit:
    """One kernel.

    Attributes:
        in_features, out_features: K and N.
        encoding: of the weight; its group divides K, its scales are floats.
        bias: whether the kernel takes a float32 bias (N,).

    Raises:
        ValueError: when the sums of a group may not fit into int32.
    """

    in_features: int
    out_features: int
    encoding: Grouped
    bias: bool

    def __post_init__(self) -> None:
        grid = self.encoding.grid
        zero = grid.count - 1 if self.zero_points else 0
        operand = _SIGNED if self.signed else grid.step * (grid.count - 1)
        factor = operand + max(abs(self.offset), abs(self.offset - zero))
        require_sums_fit(self.encoding, factor, LARGEST_SUM)

    @property
    def layout(self) -> Panels:
        return Panels(self.encoding)

    @property
    def group(self) -> int:
        """Input features that share a scale."""
        return self.encoding.group

    @property
    def groups(self) -> int:
        return self.in_features // self.group

    @property
    def panels(self) -> int:
        return self.layout.panels(self.out_features)

    @property
    def zero_points(self) -> bool:
        return has_zero_points(self.encoding)

    @property
    def signed(self) -> bool:
        """Whether codes fill a byte and lie 128 lower."""
        return self.layout.bits == 8

    @property
    def offset(self) -> int:
        """What is added to an operand, before the zero point is taken away."""
        return self.encoding.grid.first + (_SIGNED if self.signed else 0)

    @property
    def stored(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of the weight's tensors, in the order of the arguments."""
        values = self.layout.packed_shape(self.out_features, self.groups * self.layout.group)
        of_groups = self.groups, self.panels * WARP
        fields: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "values": (torch.uint8, values),
            "scales": (self.encoding.scale_dtype, of_groups),
        }
        return {**fields, "zeros": (torch.uint8, of_groups)} if self.zero_points else fields

    def pack(self, field: str, storage: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One of `stored` from the storage of the weight."""
        codes, of_groups = unpacked(self.encoding, storage, self.in_features)
        if field == "values":
            filled = codes.unflatten(-1, (self.groups, self.group))
            filled = torch.nn.functional.pad(filled, (0, self.layout.group - self.group)).flatten(-2)
            return self.layout.blocks(filled ^ _SIGNED if self.signed else filled, [])
        numbers = of_groups[("scales", "zeros").index(field)]
        padding = self.panels * WARP - self.out_features
        return as_stored(torch.nn.functional.pad(numbers, (0, 0, 0, padding)).T)


class Layer:
    """The arguments, and what the kernels do with them."""

    def __init__(self, config: BlockLowBit) -> None:
        self.config, self.layout = config, config.layout
        self.rows = emit.symbol("rows")
        self.codes = emit.argument("x_codes", (self.rows, config.in_features), "int8")
        self.x_scale = emit.argument("x_scale", (self.rows, 1), "float32")
        self.weight = {
            field: emit.argument(field, shape, STORAGE[dtype]) for field, (dtype, shape) in config.stored.items()
        }
        self.bias = emit.argument("bias", (config.out_features,), "float32") if config.bias else None
        self.y = emit.argument("y", (self.rows, config.out_features), "float32")

    @property
    def has_offsets(self) -> bool:
        """Whether levels differ from operands."""
        return self.config.zero_points or self.config.offset != 0

    def offset(self, group: Expr, column: Expr) -> Expr:
        """The offset of a group of an output feature, int32."""
        offset = T.int32(self.config.offset)
        return offset - T.cast(self.weight["zeros"][group, column], "int32") if self.config.zero_points else offset

    def scale(self, group: Expr, column: Expr) -> Expr:
        """The scale of a group of an output feature, float32."""
        return loaded(self.weight["scales"][group, column], self.config.encoding.scale_dtype)

    def load_step(
        self, block: Block, words: Registers, at: int, panel: Expr, group: Expr, step: Expr, lane: Expr
    ) -> None:
        """Within a phase: begin to read a lane's words of one step; panel and group are int64, step and lane int32."""
        layout, row = self.layout, emit.bind("row", panel * self.config.groups + group)
        first = emit.bind("first", T.cast(step * layout.load_bytes + lane * WORD, "int64"))
        for load in range(layout.loads):
            place = first + load * layout.vector_bytes
            block.load_vector(words, at + load, 1, self.weight["values"], (row, place))

    def operand(self, words: Registers, at: int, product: int) -> Expr:
        """Four operands of a step, as the bytes of a word (uint32)."""
        found = None
        for load, place, width, shift in self.layout.pieces[product]:
            word = words[at + load]
            if place > shift:
                word = T.shift_right(word, T.uint32(place - shift))
            elif place < shift:
                word = T.shift_left(word, T.uint32(shift - place))
            field = T.bitwise_and(word, T.uint32(((1 << width) - 1 << shift) * ONES))
            found = field if found is None else T.bitwise_or(found, field)
        return math.hold(found * T.uint32(self.config.encoding.grid.step))

    def load_codes(
        self, block: Block, words: Registers, at: int, count: int, row: Expr, group: Expr, inner: Expr
    ) -> None:
        """Within a phase: `count` words of activations of one row from place `inner` of a group on, all int32.

        Zero past the end of the group, past the last group and past the last row; `inner` is a multiple of ``4 count``, and
        all places are less than the group's size rounded up to SLOT.
        """
        config = self.config
        row, k = emit.bind("x_row", T.cast(row, "int64")), emit.bind("k", T.cast(group * config.group + inner, "int64"))
        some = math.hold(T.And(row < self.rows, group < config.groups))
        size = next((size for size in (4, 2, 1) if count % size == 0 and config.group % (WORD * size) == 0), None)
        if size is None:
            for word in range(count):
                words[at + word] = self._word_of_bytes(row, k, inner, word, some)
            return
        for first in range(0, count, size):

            def read(first: int = first) -> None:
                block.load_vector(words, at + first, size, self.codes, (row, k + first * WORD), keep=True)

            def clear(first: int = first) -> None:
                for word in range(first, first + size):
                    words[at + word] = T.uint32(0)

            whole = config.group % SLOT == 0
            emit.branch(some if whole else T.And(some, inner + first * WORD < config.group), read, clear)

    def _word_of_bytes(self, row: Expr, k: Expr, inner: Expr, word: int, some: Expr) -> Expr:
        found = T.uint32(0)
        for byte in range(WORD):
            place = word * WORD + byte
            inside = T.And(some, inner + place < self.config.group)
            code = math.hold(T.if_then_else(inside, self.codes[row, k + place], T.int8(0)))
            found = T.bitwise_or(
                found, T.shift_left(T.cast(T.reinterpret("uint8", code), "uint32"), T.uint32(8 * byte))
            )
        return found

    def add_group(self, sums: Registers, at: int, dot: Expr, scale: Expr) -> None:
        """The next link of an element's chain."""
        sums[at] = math.fma(T.cast(dot, "float32"), scale, sums[at])

    def result(self, total: Expr, row: Expr, column: Expr) -> None:
        """Emit the store of one element from its sum, if there is such an element; row and column are int32."""
        row, column = emit.bind("y_row", T.cast(row, "int64")), emit.bind("y_column", T.cast(column, "int64"))

        def store() -> None:
            scale = self.x_scale[row, 0]
            value = total * scale if self.bias is None else math.fma(total, scale, self.bias[column])
            T.buffer_store(self.y, value, [row, column])

        emit.branch(T.And(row < self.rows, column < self.config.out_features), store)
