"""The float instruction tile of 64-bit Arm: NEON, 32 registers of four float32."""

from __future__ import annotations

from planish.codegen.tiles.llvm_float import LlvmFloatTile

NEON = LlvmFloatTile("neon", lanes=4, registers=32, features=frozenset({"neon"}))
