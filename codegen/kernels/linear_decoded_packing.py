"""How a weight of few bits lies in memory for a linear layer that decodes it to floats.

Panels, blocks, planes and fields are those of `linear_low_bit_packing.py`. A load holds one word of ``depth`` bytes for each
column; in it, the fields are met in the order of the elements. Codes of integers around zero are stored in two's
complement, every other code as the encoding has it, trits in two bits each. Scales are stored as the encoding stores them,
those of NVFP4 and MXFP4 in a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from planish.codegen.kernels.linear_low_bit_packing import (
    SCALE_BYTES,
    BlockLayout,
    check_storage,
    code_bits,
    has_zero_points,
    unpacked,
)
from planish.ir import Float8, Grouped, GroupedInt, InputError, MxFp4, NvFp4, Param
from planish.ir.encodings.float_blocks import FOURS, e2m1_values

Blocked: TypeAlias = Grouped | NvFp4 | MxFp4
"""Encodings with a scale for each group of the last axis."""
DEPTHS = (4, 2, 1)
"""Bytes of a column in one load, as many as the group allows."""
NAN_E4M3, NAN_E8M0 = 0x7F, 0xFF


def group_of(encoding: Blocked) -> int:
    """Elements that share a scale."""
    return encoding.group if isinstance(encoding, Grouped) else encoding.block


def bits_of(encoding: Blocked) -> int:
    """Bits of a code as it is packed."""
    return code_bits(encoding) if isinstance(encoding, Grouped) else FOURS.bits


@dataclass(frozen=True)
class DecodedLayout(BlockLayout):
    """Where each element of a packed weight lies.

    Attributes:
        encoding: of the weight.
        lanes: of the machine's vectors of float32.
        vectors: vectors of columns in a panel.
    """

    encoding: Blocked
    lanes: int
    vectors: int

    def __post_init__(self) -> None:
        span = DEPTHS[-1] * self.products
        if self.group % span:
            raise ValueError(
                f"a group of {self.group} cannot be cut into steps of {span} elements, as {self.encoding} needs here: "
                f"choose a group size that is a multiple of {span}"
            )

    @property
    def depth(self) -> int:  # type: ignore[override]
        """Bytes of a column in one load."""
        return next(depth for depth in DEPTHS if self.group % (depth * self.products) == 0)

    @property
    def bits(self) -> int:
        return bits_of(self.encoding)

    @property
    def group(self) -> int:
        return group_of(self.encoding)

    @property
    def scale_bytes(self) -> int:
        return SCALE_BYTES[self.encoding.scale_dtype] if isinstance(self.encoding, Grouped) else 1

    @property
    def zero_points(self) -> bool:
        return has_zero_points(self.encoding)

    @property
    def complement(self) -> bool:
        """Whether codes are integers in two's complement."""
        return isinstance(self.encoding, GroupedInt) and not self.zero_points

    @property
    def levels(self) -> list[float]:
        """What codes stand for as they are packed, but for zero points."""
        codes = torch.arange(1 << self.bits, dtype=torch.uint8)
        if not isinstance(self.encoding, Grouped):
            return list(e2m1_values(codes).tolist())
        return [float(level) for level in self.encoding.grid.levels(codes ^ self._flipped).tolist()]

    @property
    def _flipped(self) -> int:
        """The bit by which a code of an integer around zero differs from its two's complement."""
        return 1 << (self.bits - 1) if self.complement else 0

    def pack(self, storage: Mapping[str, torch.Tensor], out_features: int, in_features: int) -> torch.Tensor:
        """The storage of a weight (N, K) in its encoding, as uint8 of :meth:`packed_shape`.

        Raises:
            ValueError: when its tensors are not those of such a weight.
        """
        self.packed_shape(out_features, in_features)
        check_storage(self.encoding, storage, out_features, in_features)
        if isinstance(self.encoding, Grouped):
            codes, of_groups = unpacked(self.encoding, storage, in_features)
            return self.blocks(codes ^ self._flipped, of_groups)
        return self.blocks(FOURS.unpack(storage["values"], in_features), [storage["scales"]])


def require_numbers(param: Param) -> None:
    """Refuse a weight whose codes or scales have NaN among them, which kernels take for a number.

    Raises:
        InputError: naming it.
    """
    encoding, storage = param.encoding, param.storage()
    if isinstance(encoding, MxFp4):
        wrong = storage["scales"] == NAN_E8M0
    elif isinstance(encoding, NvFp4 | Float8):
        wrong = storage["scales" if isinstance(encoding, NvFp4) else "values"] & NAN_E4M3 == NAN_E4M3
    else:
        return
    if bool(wrong.any()):
        raise InputError(f"the weight {param.name!r}, encoded as {encoding}, has NaN in it: quantise it again")
