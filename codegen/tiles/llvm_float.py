"""A float tile in LLVM's own vector operations, which serves every processor that LLVM makes code for.

They become single instructions once the compilation target has the features that the tile names.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from planish.codegen.tiles.float import E4M3, STORAGE_DTYPES, Expr, FloatTile
from planish.codegen.tiles.small_floats import e4m3


@dataclass(frozen=True)
class LlvmFloatTile(FloatTile):
    """A float tile in LLVM's generic vector operations. ``features`` are LLVM's names.

    Attributes:
        permute: LLVM's intrinsic that permutes a vector by int32 places, or "" where there is none.
    """

    permute: str = ""

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        return T.call_llvm_pure_intrin(f"float32x{self.lanes}", "llvm.fma", a, b, c)

    def broadcast(self, scalar: Expr) -> Expr:
        return T.broadcast(scalar, self.lanes)

    def widen(self, vector: Expr, dtype: str) -> Expr:
        if dtype == "float32":
            return vector
        if dtype == "float16":
            return T.cast(vector, f"float32x{self.lanes}")
        if dtype == "bfloat16":
            # bfloat16 is the upper half of float32, so its bits moved up are the value itself.
            bits = T.cast(vector, f"uint32x{self.lanes}")
            return T.reinterpret(f"float32x{self.lanes}", T.shift_left(bits, T.broadcast(T.uint32(16), self.lanes)))
        if dtype == E4M3:
            return e4m3(vector)
        raise ValueError(f"the tile {self.name} cannot widen {dtype}: use one of {', '.join(STORAGE_DTYPES)}")

    def _first(self, count: Expr) -> Expr:
        return T.ramp(T.int32(0), 1, self.lanes) < T.broadcast(count, self.lanes)

    def load_first(self, pointer: Expr, count: Expr) -> Expr:
        zero = self.broadcast(T.float32(0))
        return T.call_llvm_intrin(f"float32x{self.lanes}", "llvm.masked.load", pointer, self._first(count), zero)

    def store_first(self, pointer: Expr, vector: Expr, count: Expr) -> None:
        T.evaluate(T.call_llvm_intrin("void", "llvm.masked.store", vector, pointer, self._first(count)))

    def lookup(self, table: Expr, places: Expr) -> Expr:
        if not self.permute:
            return super().lookup(table, places)
        return T.call_llvm_pure_intrin(f"float32x{self.lanes}", self.permute, table, places)
