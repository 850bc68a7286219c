"""How blocks of threads are cut for many queries: by the size of heads, shared memory, and registers."""

from __future__ import annotations

from dataclasses import dataclass

from planish.codegen.kernels.attention import Attention
from planish.codegen.kernels.blocks.attention_rows import QUAD, THREADS, quads
from planish.codegen.simt.block import rounded_bytes

KEY_LANES = 8
ROW_LANES = THREADS // KEY_LANES
LARGEST_OUTPUTS = 128
"""Registers that a thread's outputs may take."""


@dataclass(frozen=True)
class Tiling:
    """How a block is cut: rows and keys of one thread."""

    config: Attention
    rows: int
    keys: int

    @property
    def block_rows(self) -> int:
        return self.rows * ROW_LANES

    @property
    def block_keys(self) -> int:
        return self.keys * KEY_LANES

    @property
    def key_stride(self) -> int:
        """Elements from one query or key to the next: an odd number of quads, so that eight of them lie in all banks."""
        return (quads(self.config.size) | 1) * QUAD

    @property
    def value_stride(self) -> int:
        return self.key_stride if self.config.shared else quads(self.config.value_size) * QUAD

    @property
    def weight_stride(self) -> int:
        return self.block_keys + KEY_LANES

    @property
    def columns(self) -> int:
        """Quads of the output that one thread has of each row."""
        return -(-quads(self.config.value_size) // KEY_LANES)

    @property
    def buffers(self) -> dict[str, int]:
        """Elements of the shared buffers; where keys and values are one tensor, so are their tiles and scales."""
        sizes = {
            "queries": self.block_rows * self.key_stride,
            "keys": self.block_keys * self.key_stride,
            "values": self.block_keys * self.value_stride,
            "weights": self.block_rows * self.weight_stride,
        }
        if self.config.shared:
            del sizes["values"]
        return sizes | {f"{name}_scales": self.block_keys for name in self.config.scaled}

    @property
    def shared_bytes(self) -> int:
        return sum(rounded_bytes(size, "float32") for size in self.buffers.values())


def tiling_for(config: Attention, shared_bytes: int) -> Tiling | None:
    """The largest tiles that fit into that much shared memory and into the registers of a thread."""
    for rows, keys in ((4, 4), (2, 4), (2, 2), (1, 2), (1, 1)):
        tiling = Tiling(config, rows, keys)
        if tiling.shared_bytes <= shared_bytes and rows * tiling.columns * QUAD <= LARGEST_OUTPUTS:
            return tiling
    return None
