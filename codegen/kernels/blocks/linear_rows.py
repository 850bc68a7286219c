"""How blocks take the rows of a linear layer on floats, whatever its weight is stored as.

Few rows are taken together at the speed of memory (`float_gemv`), more as a matrix product (`float_gemm`). The number of
rows is known at the latest when the kernel is called, and decides then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks import float_gemm, float_gemv
from planish.codegen.kernels.blocks.float_gemm import Factor, Product
from planish.codegen.kernels.blocks.float_gemv import FewRows, Matrix
from planish.codegen.tiles.float import Expr

HEIGHTS = (1, 4, 8)
"""Numbers of rows for which there is a kernel that reads the weight once."""

SCHEDULE = f"a warp to {float_gemv.COLUMNS} columns for up to {HEIGHTS[-1]} rows, {float_gemm.described(False)} beyond"


@dataclass(frozen=True)
class LinearRows:
    """The kernels of one layer.

    Attributes:
        x: (M, K) float32.
        rows, columns, depth: M, N and K.
        matrix: the weight as few rows read it.
        element: ``(column, k)`` to one element of the weight, as `Factor.element` has it.
        store: emits the store of ``(row, column, value)``.
        multiprocessors: of the machine, each of which should have work.
    """

    x: Any
    rows: Expr | int
    columns: int
    depth: int
    matrix: Matrix
    element: Callable[[Expr, Expr], Expr]
    store: Callable[[Expr, Expr, Expr], None]
    multiprocessors: int

    def launch(self) -> None:
        """Emit the choice among the kernels."""
        self._at_most(HEIGHTS)

    def _at_most(self, heights: tuple[int, ...]) -> None:
        if not heights:
            tiles = emit.ceil_div(self.rows, float_gemm.WIDE) * emit.ceil_div(self.columns, float_gemm.WIDE)
            wide = tiles >= 2 * self.multiprocessors
            emit.branch(wide, lambda: self._product(True), lambda: self._product(False))
            return
        height, *higher = heights
        emit.branch(self.rows <= height, lambda: self._few(height), lambda: self._at_most(tuple(higher)))

    def _few(self, height: int) -> None:
        float_gemv.launch(FewRows(self.x, self.matrix, self.rows, self.columns, self.depth, height, self.store))

    def _product(self, wide: bool) -> None:
        left = Factor(lambda batch, row, k: self.x[row, k], along_depth=True)
        right = Factor(lambda batch, column, k: self.element(column, k), along_depth=True)

        def store(batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
            self.store(row, column, value)

        float_gemm.launch(Product(1, self.rows, self.columns, self.depth, left, right, store, wide))
