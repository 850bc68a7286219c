"""The float instruction tiles of x86-64: AVX-512 and AVX2 with FMA3."""

from __future__ import annotations

from planish.codegen.tiles.llvm_float import LlvmFloatTile

AVX512 = LlvmFloatTile(
    "avx512",
    lanes=16,
    registers=32,
    features=frozenset({"avx512f"}),
    entries=16,
    permute="llvm.x86.avx512.permvar.sf.512",
)
AVX2 = LlvmFloatTile(
    "avx2",
    lanes=8,
    registers=16,
    features=frozenset({"avx2", "fma", "f16c"}),
    entries=8,
    permute="llvm.x86.avx2.permps",
)

FLOAT_TILES = (AVX512, AVX2)
"""Every float tile of this target, widest first."""
