"""Codes of a few bits in a stream of int32 words, the first code in the lowest bits: how most checkpoints pack them.

On a little-endian machine the bytes of the words are the bytes of `BitPacking`, also where a code straddles two words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from planish.ir.encodings.packing import BitPacking


def words(codes: int, bits: int) -> int:
    """Words of so many codes."""
    return -(-codes * bits // 32)


def packed(stream: torch.Tensor, codes: int, bits: int) -> torch.Tensor:
    """Rows of words (int32 [rows, words]) as `BitPacking` packs their first `codes` codes (uint8)."""
    # A transposed single word is contiguous whatever its strides, and then has no view of its bytes.
    held = stream.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    width = BitPacking(bits).width(codes)
    return F.pad(held, (0, width - held.shape[-1])) if held.shape[-1] < width else held[:, :width].contiguous()


def unpacked(stream: torch.Tensor, codes: int, bits: int) -> torch.Tensor:
    """The first `codes` codes (uint8 [rows, codes]) of rows of words (int32 [rows, words])."""
    return BitPacking(bits).unpack(packed(stream, codes, bits), codes)


def stream(held: torch.Tensor, codes: int, bits: int) -> torch.Tensor:
    """Rows of words (int32 [rows, words]) of what `BitPacking` packed (uint8 [rows, bytes])."""
    wide = 4 * words(codes, bits)
    whole = F.pad(held, (0, max(0, wide - held.shape[-1])))[:, :wide]
    return whole.clone(memory_format=torch.contiguous_format).view(torch.int32)
