"""Batched product of two activations: ``y[B, M, N] = a[B, M, K] @ b[B, K, N]``, float32, nothing packed beforehand.

Every size may be known or symbolic, and is at least 1. Each element is the chain of fused multiply-adds of
:mod:`planish.codegen.kernels.float_gemm`, so a row of y has the same bits whatever B and M are. Few rows read b where
it lies; more rows copy a depth block of b into panels first, as each task then reads it once for every row tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.float_gemm import (
    DepthBlock,
    RowTiles,
    check_registers,
    load_columns,
    register_tile,
    store_columns,
)
from planish.codegen.tiles.float import Expr, FloatTile


@dataclass(frozen=True)
class Matmul:
    """One batched matrix product: the problem first, then how it is cut.

    Attributes:
        batch, rows, depth, columns: B, M, K and N; None where only the call knows.
        transposed: whether b comes as (B, N, K).
        tile: the machine's vectors.
        tile_rows, tile_vectors: largest register tile, in rows of a and in vectors of columns.
        depth_block: steps k between two visits of a panel.
        task_panels, task_tiles: panels and row tiles in one task of one thread.
        in_place_block, in_place_panels: depth block and panels of a task while b is read in place. Wide and shallow:
            a narrow column of b would touch memory in short pieces far apart.
    """

    batch: int | None
    rows: int | None
    depth: int | None
    columns: int | None
    transposed: bool
    tile: FloatTile
    tile_rows: int
    tile_vectors: int
    depth_block: int = 256
    task_panels: int = 2
    task_tiles: int = 32
    in_place_block: int = 16
    in_place_panels: int = 16

    def __post_init__(self) -> None:
        problem = (self.batch, self.rows, self.depth, self.columns)
        blocks = (self.depth_block, self.task_panels, self.task_tiles, self.in_place_block, self.in_place_panels)
        if any(size is not None and size < 1 for size in (*problem, self.tile_rows, self.tile_vectors, *blocks)):
            raise ValueError(f"every size of a matrix product must be at least 1: {self}")
        check_registers(self.tile, self.tile_rows, self.tile_vectors)

    @property
    def panel_width(self) -> int:
        """Columns in one panel."""
        return self.tile_vectors * self.tile.lanes


def configurations(
    tile: FloatTile,
    batch: int | None,
    rows: int | None,
    depth: int | None,
    columns: int | None,
    transposed: bool = False,
) -> list[Matmul]:
    """The kernels worth trying for one product on one machine; the first is the best guess."""
    shapes = [(6, 4), (8, 3), (12, 2)] if tile.registers >= 32 else [(6, 2), (4, 3)]

    def padding(shape: tuple[int, int]) -> int:
        """Columns computed, in twentieths of those asked for; without a known number, the widest tile comes first."""
        width = shape[1] * tile.lanes
        return 0 if columns is None else 20 * width * int(emit.ceil_div(columns, width)) // columns

    return [
        Matmul(batch, rows, depth, columns, transposed, tile, tile_rows, vectors, block, panels)
        for tile_rows, vectors in sorted(shapes, key=padding)
        for block in (256, 512)
        for panels in (2, 4, 1)
    ]


class _Product:
    """The arguments of one kernel and the accesses its two programs share."""

    def __init__(self, config: Matmul) -> None:
        self.config, self.tile = config, config.tile
        names = {"batch": config.batch, "rows": config.rows, "depth": config.depth, "columns": config.columns}
        sizes = [emit.symbol(name) if size is None else emit.index(size) for name, size in names.items()]
        self.batch, self.rows, self.depth, self.columns = sizes
        b_shape = (self.columns, self.depth) if config.transposed else (self.depth, self.columns)
        self.a = emit.argument("a", (self.batch, self.rows, self.depth), "float32")
        self.b = emit.argument("b", (self.batch, *b_shape), "float32")
        self.y = emit.argument("y", (self.batch, self.rows, self.columns), "float32")
        self.whole = config.columns is not None and config.columns % config.panel_width == 0
        self.panels = emit.ceil_div(self.columns, config.panel_width)

    def load(self, buffer: Expr, indices: list[Expr], whole: bool) -> Expr:
        """A vector along the columns of b or y, zero past the last column unless the vector is known to be whole."""
        return load_columns(self.tile, buffer, indices, self.columns, whole)

    def store(self, indices: list[Expr], value: Expr, whole: bool) -> None:
        """Emit the store of a vector along the columns of y."""
        store_columns(self.tile, self.y, indices, value, self.columns, whole)

    def pack(self, packed: Expr, batch: Expr, first_panel: Expr, panels: Expr, block: DepthBlock) -> None:
        """Emit the copy of one depth block of some panels of b: ``packed[panel, k, column]``, zero past the end."""
        config, lanes = self.config, self.tile.lanes
        width, size = config.panel_width, config.depth_block
        begin, steps = block.begin, block.steps
        with emit.loop("panel", panels) as panel:
            first = emit.bind("first_column", (first_panel + panel) * width)
            if not config.transposed:
                with emit.loop("k", steps) as k, emit.unrolled("v", config.tile_vectors) as v:
                    value = self.load(self.b, [batch, begin + k, first + v * lanes], self.whole)
                    emit.store(packed, [(panel * size + k) * width + v * lanes], value, lanes)
                return
            with emit.loop("column", width) as column:

                def copy(value: Callable[[Expr], Expr]) -> None:
                    with emit.loop("k", steps) as k:
                        T.buffer_store(packed, value(k), [(panel * size + k) * width + column])

                emit.branch(
                    first + column < self.columns,
                    lambda: copy(lambda k: self.b[batch, first + column, begin + k]),
                    lambda: copy(lambda k: T.float32(0)),
                )

    def row_tile(
        self,
        at: tuple[Expr, Expr, Expr],
        panels: Expr,
        block: DepthBlock,
        vector: Callable[[Expr, Expr, Expr, Expr, bool], Expr],
        height: int,
        split: bool,
    ) -> None:
        """Emit one row tile against one depth block of some panels; the partial sums wait in y.

        Args:
            at: batch, first row, first panel.
            panels: number of panels.
            block: the steps to take.
            vector: ``(panel, column, k, v, whole)`` to a vector of b: the panel counted from the first, its first
                column, the step counted from the beginning of the block, whether it is known to be whole.
            height: rows of the tile.
            split: whether panels that are whole get a program of their own, without masks.
        """
        batch, start, first_panel = at
        config, lanes = self.config, self.tile.lanes

        def one_panel(panel: Expr, column: Expr, whole: bool) -> None:
            register_tile(
                config.tile,
                height,
                config.tile_vectors,
                block.sweep(
                    lambda k, row: self.a[batch, start + row, k],
                    lambda k, v: vector(panel, column, k, v, whole),
                ),
                load=lambda row, v: self.load(self.y, [batch, start + row, column + v * lanes], whole),
                store=lambda row, v, value, last: self.store([batch, start + row, column + v * lanes], value, whole),
                first=block.first,
                last=block.last,
            )

        with emit.loop("panel", panels) as panel:
            column = emit.bind("column", (first_panel + panel) * config.panel_width)
            if self.whole or not split:
                one_panel(panel, column, self.whole)
            else:
                emit.branch(
                    column + config.panel_width <= self.columns,
                    lambda: one_panel(panel, column, True),
                    lambda: one_panel(panel, column, False),
                )


def _in_place(product: _Product) -> None:
    """Few rows, one tile of them: every element of b is used once, where it lies."""
    config, lanes, size = product.config, product.tile.lanes, product.config.in_place_block
    column_tasks = emit.bind("column_tasks", emit.ceil_div(product.panels, config.in_place_panels))
    with emit.tasks("task", product.batch * column_tasks) as task:
        batch = emit.bind("batch", task // column_tasks)
        first_panel = emit.bind("first_panel", task % column_tasks * config.in_place_panels)
        panels = T.min(product.panels - first_panel, emit.index(config.in_place_panels))
        with emit.loop("block", DepthBlock.count(product.depth, size)) as index:
            block = DepthBlock(product.depth, size, index)

            def vector(panel: Expr, column: Expr, k: Expr, v: Expr, whole: bool) -> Expr:
                return product.load(product.b, [batch, block.begin + k, column + v * lanes], whole)

            def row_tile(height: int, start: Expr) -> None:
                product.row_tile((batch, start, first_panel), panels, block, vector, height, split=True)

            RowTiles(config.rows or product.rows, config.tile_rows).each(emit.index(0), 1, row_tile)


def _packed(product: _Product) -> None:
    """Many rows: each task copies a depth block of its panels and takes its row tiles over it."""
    config, lanes, size = product.config, product.tile.lanes, product.config.depth_block
    tiles = RowTiles(config.rows or product.rows, config.tile_rows)
    row_tasks = emit.bind("row_tasks", tiles.tasks(config.task_tiles))
    column_tasks = emit.bind("column_tasks", emit.ceil_div(product.panels, config.task_panels))
    with emit.tasks("task", product.batch * column_tasks * row_tasks) as task:
        batch = emit.bind("batch", task // (column_tasks * row_tasks))
        first_panel = emit.bind("first_panel", task // row_tasks % column_tasks * config.task_panels)
        panels = emit.bind("panels", T.min(product.panels - first_panel, emit.index(config.task_panels)))
        packed = emit.scratch("packed_b", config.task_panels * size * config.panel_width)

        def vector(panel: Expr, column: Expr, k: Expr, v: Expr, whole: bool) -> Expr:
            return emit.load(packed, [(panel * size + k) * config.panel_width + v * lanes], lanes)

        with emit.loop("block", DepthBlock.count(product.depth, size)) as index:
            block = DepthBlock(product.depth, size, index)
            product.pack(packed, batch, first_panel, panels, block)

            def row_tile(height: int, start: Expr) -> None:
                product.row_tile((batch, start, first_panel), panels, block, vector, height, split=False)

            tiles.each(task % row_tasks, config.task_tiles, row_tile)


def matmul(config: Matmul) -> Any:
    """The PrimFunc ``(a (B, M, K), b (B, K, N) or (B, N, K) if transposed, y (B, M, N))`` of ``config``."""

    def body() -> None:
        product = _Product(config)
        few = False if config.transposed else product.rows <= config.tile_rows
        if isinstance(config.rows, int) and not config.transposed:
            few = config.rows <= config.tile_rows
        emit.branch(few, lambda: _in_place(product), lambda: _packed(product))

    return emit.prim_func("matmul", body)
