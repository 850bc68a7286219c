"""The order in which the low-bit linear kernel reads its weight, and the packing into it.

A *panel* is ``columns`` output features, a *block* one group of input features of one panel. Blocks follow each other in
the order in which the kernel consumes them, and each carries its own scales, so one thread reads one stream.

Codes are cut into *planes* whose widths divide a byte: 5 bits are a plane of 4 and one of 1. A panel has ``vectors`` vectors
of columns, of which ``shared`` make a *bundle*; the fields of a byte are codes of the vectors of one bundle and, where a byte
has more fields, of several dot products. A *step* is the smallest number of dot products for which every plane takes whole
loads; shared among as many vectors as the narrowest plane has fields, it is one. In a block:

    step:  bundle:  plane:  load:  lane l < lanes:  byte d < depth
        field f, from the lowest bits up: with i = load * fields + f, the plane's bits of
        element k = (step * products + i / shared) * depth + d
        of column n = (bundle * shared + i mod shared) * lanes + l
    then ``columns`` scales, then ``columns`` zero points of a byte each where groups have them.

So one load gives the operands of several products, and what the lower fields of a byte and all of it sum to tells what each
field does (`linear_low_bit_sums`). Where the instruction wants signed weights, the highest bit of each byte is flipped.

Codes of 3 bits that eight vectors share are not cut into planes. A step takes 3 loads; each has the codes of two vectors
whole, and the two bits that are left of each make up those of the last two:

    bits 0-2 and 3-5 of load 0: vectors 0 and 1; of load 1: 2 and 3; of load 2: 4 and 5
    vector 6, highest bits first: bits 6-7 of load 0, bit 7 of load 2
    vector 7: bit 6 of load 2, bits 6-7 of load 1
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from planish.ir import Encoding, Grouped, GroupedInt, TensorType

SCALE_BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}
"""Bytes of one scale."""
LANE_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""For every depth, an integer as wide as the bytes one lane reads."""
DOT_DEPTHS = (2, 4, 8)
"""Elements of the dot products that there are kernels for."""
HIGHEST = 0x80
"""The highest bit of a byte."""
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Widths of the planes of codes of so many bits, lowest bits first."""


class Piece(NamedTuple):
    """Bits of codes: the ``width`` ones from ``shift`` on, which a load's bytes have from bit ``at`` on."""

    load: int
    at: int
    width: int
    shift: int


IN_THREE_LOADS = (
    *((Piece(load, at, 3, 0),) for load in range(3) for at in (0, 3)),
    (Piece(0, 6, 2, 1), Piece(2, 7, 1, 0)),
    (Piece(2, 6, 1, 2), Piece(1, 6, 2, 0)),
)
"""For every vector of a bundle, the pieces of its codes of 3 bits, highest bits first. What is inserted ends a byte."""


MOST_SHARED_BITS = 4
"""Codes of more bits are pieces of several bytes, or a byte: one row gains nothing by summing them as they lie."""


@dataclass(frozen=True)
class Plane:
    """Bits ``shift`` to ``shift + width - 1`` of codes; a step takes ``loads`` loads of it."""

    width: int
    shift: int
    loads: int

    @property
    def fields(self) -> int:
        """Codes that have their bits in one byte."""
        return 8 // self.width


class BlockLayout(ABC):
    """Blocks of codes and of what belongs to each group, whatever codes stand for.

    Attributes:
        lanes, depth: columns of one load, and its bytes of each.
        vectors: vectors of columns in a panel.
    """

    lanes: int
    depth: int
    vectors: int

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of a code."""

    @property
    @abstractmethod
    def group(self) -> int:
        """Elements of a column in one block."""

    @property
    @abstractmethod
    def scale_bytes(self) -> int:
        """Bytes of one scale."""

    @property
    @abstractmethod
    def zero_points(self) -> bool:
        """Whether every group has one."""

    @property
    def shared(self) -> int:
        """Vectors of columns in a bundle."""
        return 1

    @property
    def flipped(self) -> bool:
        """Whether the highest bit of each byte of codes is."""
        return False

    @property
    def bundles(self) -> int:
        """Bundles in a panel."""
        return self.vectors // self.shared

    @property
    def products(self) -> int:
        """Dot products in a step."""
        fields = 8 // min(PLANES[self.bits])
        return fields // math.gcd(fields, self.shared)

    @property
    def planes(self) -> list[Plane]:
        """The planes of a step, in order."""
        widths = PLANES[self.bits]
        return [Plane(w, sum(widths[:n]), self.products * self.shared * w // 8) for n, w in enumerate(widths)]

    @property
    def pieces(self) -> Sequence[Sequence[Piece]]:
        """Where codes lie among the loads of a bundle: for every product of a step, those of each vector in turn."""
        found: list[list[Piece]] = [[] for _ in range(self.products * self.shared)]
        first = 0
        for plane in self.planes:
            for number, pieces in enumerate(found):
                load, field = divmod(number, plane.fields)
                pieces.append(Piece(first + load, field * plane.width, plane.width, plane.shift))
            first += plane.loads
        return found

    @property
    def columns(self) -> int:
        """Output features in one panel."""
        return self.vectors * self.lanes

    @property
    def steps(self) -> int:
        """Steps in one block."""
        return self.group // (self.depth * self.products)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one load."""
        return self.lanes * self.depth

    @property
    def loads(self) -> int:
        """Loads of one bundle in a step."""
        return sum(plane.loads for plane in self.planes)

    @property
    def value_bytes(self) -> int:
        """Bytes of the codes of one block; its scales begin there."""
        return self.steps * self.bundles * self.loads * self.vector_bytes

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block, scales and zero points included."""
        return self.value_bytes + self.columns * (self.scale_bytes + self.zero_points)

    def panels(self, out_features: int) -> int:
        """Panels of a weight; the last one is padded."""
        return -(-out_features // self.columns)

    def packed_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """(panels * groups, bytes of a block): the blocks of the first panel, then those of the second, and so on.

        Raises:
            ValueError: when the group does not divide ``in_features``.
        """
        if in_features % self.group:
            raise ValueError(
                f"a group of {self.group} does not divide the {in_features} input features of a low-bit linear layer: "
                f"choose a group size that divides {in_features}"
            )
        return self.panels(out_features) * (in_features // self.group), self.block_bytes

    def blocks(self, codes: torch.Tensor, of_groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """Codes (N, K) and numbers (N, groups) in their order within a block, as uint8 of :meth:`packed_shape`."""
        out_features, in_features = codes.shape
        count, _ = self.packed_shape(out_features, in_features)
        panels, groups = self.panels(out_features), in_features // self.group
        padding = panels * self.columns - out_features

        def of_group(field: torch.Tensor) -> torch.Tensor:
            """(N, groups) to the bytes of each block."""
            padded = torch.nn.functional.pad(field, (0, 0, 0, padding)).reshape(panels, self.columns, groups)
            # A copy for certain: what is contiguous by having one column cannot be viewed as bytes.
            return padded.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(torch.uint8)

        parts = [self._interleave(torch.nn.functional.pad(codes, (0, 0, 0, padding)), panels, groups)]
        parts += [of_group(field) for field in of_groups]
        return torch.cat(parts, dim=-1).reshape(count, self.block_bytes)

    def _interleave(self, codes: torch.Tensor, panels: int, groups: int) -> torch.Tensor:
        """Codes (panels * columns, K) in the order of the module's docstring: (panels, groups, value_bytes)."""
        word = LANE_WORDS[self.depth]
        shape = panels, self.bundles, self.shared, self.lanes, groups, self.steps
        fields = codes.reshape(*shape, self.products, self.depth)
        bytes_ = [torch.zeros((), dtype=torch.uint8)] * self.loads
        for number, pieces in enumerate(self.pieces):
            product, member = divmod(number, self.shared)
            of_field = fields[:, :, member, ..., product, :]
            for piece in pieces:
                # Pieces of a byte are in their places; what overlaps no more can be added.
                moved = ((of_field >> piece.shift) & ((1 << piece.width) - 1)) << piece.at
                bytes_[piece.load] = bytes_[piece.load] + moved
        # What one lane reads at once moves as one number: many times faster than byte by byte.
        words = torch.stack([of_load.contiguous().view(word).squeeze(-1) for of_load in bytes_], dim=-1)
        # A copy for certain, here too.
        packed = words.permute(0, 3, 4, 1, 5, 2).clone(memory_format=torch.contiguous_format).view(torch.uint8)
        return (packed ^ HIGHEST if self.flipped else packed).reshape(panels, groups, self.value_bytes)


@dataclass(frozen=True)
class LowBitLayout(BlockLayout):
    """Where each element of a packed weight lies.

    Attributes:
        encoding: of the weight.
        lanes, depth: of the instruction tile that reads it.
        vectors: vectors of columns in a panel.
        flipped: whether the highest bit of each byte of codes is, for instructions that want signed weights.
    """

    encoding: Grouped
    lanes: int
    depth: int
    vectors: int
    flipped: bool = False

    @property
    def shared(self) -> int:
        fields = fields_to_share(self.bits)
        return 1 if self.vectors % fields else fields

    @property
    def uncut(self) -> bool:
        """Whether codes lie as `IN_THREE_LOADS` says."""
        return self.bits == 3 and self.shared == len(IN_THREE_LOADS)

    @property
    def pieces(self) -> Sequence[Sequence[Piece]]:
        return IN_THREE_LOADS if self.uncut else super().pieces

    @property
    def lowered(self) -> bool:
        """Whether codes are bytes that lie 128 lower."""
        return self.flipped and self.bits == 8

    def __post_init__(self) -> None:
        if self.depth not in DOT_DEPTHS:
            raise ValueError(
                f"no low-bit linear kernel for dot products of {self.depth} elements: use a tile with a depth of 2, 4 or 8"
            )
        span = self.depth * max(2, self.products)
        if self.encoding.group % span:
            raise ValueError(
                f"a group of {self.encoding.group} cannot be cut into steps of {span} elements, as {self.encoding} needs "
                f"here: choose a group size that is a multiple of {span}"
            )

    @property
    def bits(self) -> int:
        return code_bits(self.encoding)

    @property
    def group(self) -> int:
        return self.encoding.group

    @property
    def scale_bytes(self) -> int:
        return SCALE_BYTES[self.encoding.scale_dtype]

    @property
    def zero_points(self) -> bool:
        return has_zero_points(self.encoding)

    def pack(self, storage: Mapping[str, torch.Tensor], out_features: int, in_features: int) -> torch.Tensor:
        """The storage of a weight (N, K) in its encoding, as uint8 of :meth:`packed_shape`.

        Raises:
            ValueError: when its tensors are not those of such a weight.
        """
        self.packed_shape(out_features, in_features)
        check_storage(self.encoding, storage, out_features, in_features)
        codes, of_groups = unpacked(self.encoding, storage, in_features)
        return self.blocks(codes, of_groups)


def fields_to_share(bits: int) -> int:
    """Among how many vectors the bytes of codes of so many bits are best shared."""
    return 8 // min(PLANES[bits]) if bits <= MOST_SHARED_BITS else 1


def code_bits(encoding: Grouped) -> int:
    """Bits that hold any code of a grid."""
    return (encoding.grid.count - 1).bit_length()


def has_zero_points(encoding: Encoding) -> bool:
    """Whether every group of an encoding has a zero point."""
    return isinstance(encoding, GroupedInt) and encoding.zero_points


def unpacked(
    encoding: Grouped, storage: Mapping[str, torch.Tensor], in_features: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Codes (N, K) of a weight in its storage, and for each of its groups (N, groups) the scale, then the zero point."""
    of_groups = [storage["scales"]]
    if has_zero_points(encoding):
        of_groups.append(encoding.packing.unpack(storage["zeros"], in_features // encoding.group))
    return encoding.packing.unpack(storage["values"], in_features), of_groups


def check_storage(encoding: Encoding, storage: Mapping[str, torch.Tensor], out_features: int, in_features: int) -> None:
    """Raise ValueError unless the tensors are those of a weight (N, K) in that encoding."""
    wanted = encoding.layout(TensorType(torch.float32, (out_features, in_features)))
    for field, type in wanted.items():
        found = storage[field]
        if (found.dtype, tuple(found.shape)) != (type.dtype, type.concrete({})):
            raise ValueError(
                f"the {field} of a weight ({out_features}, {in_features}) encoded as {encoding} must be {type}, "
                f"not {found.dtype} {tuple(found.shape)}"
            )
