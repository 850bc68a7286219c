"""Dense linear layer in float32 arithmetic: ``y[M, N] = x[M, K] @ weight[N, K]^T (+ bias)``, M known at run time.

The weight is float32, float16 or bfloat16, packed beforehand and widened in registers. Each element of y is the chain
of fused multiply-adds of :mod:`planish.codegen.kernels.float_gemm`, the bias added last, so a row of y has the same
bits whatever M is. A weight of eight-bit floats (E4M3) comes with a scale for each output feature, by which the chain is
multiplied; with a bias that is one more fused multiply-add. Two programs stand behind one function:

- one row: every weight is read once and used once, so the speed is that of memory; threads share out the panels, and
  several panels are in flight because one chain alone waits for itself;
- several rows: threads share out (columns x rows); a depth block of the panels stays in cache while the rows of a task
  pass over it, and the partial sums wait in y. x is read where it lies: the few rows of one register tile are as many
  streams, and packing them measured no faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.float_gemm import (
    DepthBlock,
    RowTiles,
    Step,
    check_registers,
    load_columns,
    register_tile,
    store_columns,
)
from planish.codegen.kernels.linear_dense_packing import pack_panels
from planish.codegen.tiles.float import E4M3, STORAGE_DTYPES, Expr, FloatTile

STORED = {**STORAGE_DTYPES, E4M3: "uint8"}
"""How the elements of a weight lie in memory, by logical dtype."""


@dataclass(frozen=True)
class LinearDense:
    """One dense linear kernel: the problem first, then how it is cut.

    Attributes:
        in_features, out_features: K and N.
        weight_dtype: logical dtype of the weight: float32, float16, bfloat16 or E4M3.
        bias: whether the kernel takes a float32 bias (N,).
        tile: the machine's vectors.
        rows, vectors: largest register tile, in rows of x and in vectors of columns; a panel has ``vectors`` vectors.
        one_row_panels: panels accumulated side by side when x has one row.
        depth_block: steps k between two visits of a panel, for several rows.
        task_panels, task_tiles: panels and row tiles in one task of one thread.
    """

    in_features: int
    out_features: int
    weight_dtype: str
    bias: bool
    tile: FloatTile
    rows: int
    vectors: int
    one_row_panels: int = 2
    depth_block: int = 512
    task_panels: int = 2
    task_tiles: int = 32

    def __post_init__(self) -> None:
        if self.weight_dtype not in STORED:
            raise ValueError(
                f"no dense linear kernel for weights of {self.weight_dtype}: use one of {', '.join(STORED)}"
            )
        sizes = (self.in_features, self.out_features, self.rows, self.vectors, self.one_row_panels, self.depth_block)
        if min(*sizes, self.task_panels, self.task_tiles) < 1:
            raise ValueError(f"every size of a dense linear kernel must be at least 1: {self}")
        check_registers(self.tile, self.rows, self.vectors)

    @property
    def scaled(self) -> bool:
        """Whether the kernel takes a float32 scale (N,)."""
        return self.weight_dtype == E4M3

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """Shape of the packed weight."""
        return self.panels, self.in_features, self.panel_width

    @property
    def panel_width(self) -> int:
        """Output features in one panel."""
        return self.vectors * self.tile.lanes

    @property
    def panels(self) -> int:
        """Panels of the packed weight; the last one may be padded."""
        return int(emit.ceil_div(self.out_features, self.panel_width))


def pack_weight(config: LinearDense, weight: torch.Tensor) -> torch.Tensor:
    """``weight`` (N, K) in the layout the kernel of ``config`` reads: (panels, K, panel_width).

    Raises:
        ValueError: when shape or dtype are not those of ``config``.
    """
    dtype = str(weight.dtype).removeprefix("torch.")
    if tuple(weight.shape) != (config.out_features, config.in_features) or dtype != config.weight_dtype:
        raise ValueError(
            f"this dense linear kernel packs a {config.weight_dtype} weight of shape "
            f"({config.out_features}, {config.in_features}), not {dtype} {tuple(weight.shape)}"
        )
    return pack_panels(weight, config.panel_width)


def configurations(
    tile: FloatTile, in_features: int, out_features: int, weight_dtype: str, bias: bool
) -> list[LinearDense]:
    """The kernels worth trying for one layer on one machine; the first is the best guess."""
    shapes = [(6, 4), (12, 2), (8, 3), (14, 2)] if tile.registers >= 32 else [(6, 2), (4, 3)]

    def padding(shape: tuple[int, int]) -> int:
        """Columns computed, in twentieths of those asked for: less waste first, small differences ignored."""
        width = shape[1] * tile.lanes
        return 20 * width * int(emit.ceil_div(out_features, width)) // out_features

    return [
        LinearDense(
            in_features,
            out_features,
            weight_dtype,
            bias,
            tile,
            rows,
            vectors,
            one_row_panels=max(1, 8 // vectors),
            depth_block=depth,
            task_panels=panels,
        )
        for rows, vectors in sorted(shapes, key=padding)
        for depth in (512, 1024, 256)
        for panels in (2, 4)
    ]


class _Buffers:
    """The arguments of one kernel and the accesses its two programs share."""

    def __init__(self, config: LinearDense) -> None:
        self.config, self.tile = config, config.tile
        self.rows = emit.symbol("rows")
        self.x = emit.argument("x", (self.rows, config.in_features), "float32")
        self.weight = emit.argument("weight", config.packed_shape, STORED[config.weight_dtype])
        self.scale = emit.argument("scale", (config.out_features,), "float32") if config.scaled else None
        self.bias = emit.argument("bias", (config.out_features,), "float32") if config.bias else None
        self.y = emit.argument("y", (self.rows, config.out_features), "float32")

    def columns(self, panel: Expr, k: Expr, v: int) -> Expr:
        """Vector ``v`` of row ``k`` of a panel of the weight, as float32."""
        stored = emit.load(self.weight, [panel, k, v * self.tile.lanes], self.tile.lanes)
        return self.tile.widen(stored, self.config.weight_dtype)

    def load(self, buffer: Expr, indices: list[Expr], whole: bool) -> Expr:
        """A vector of ``buffer`` along the columns, zero past the last one unless the vector is known to be whole."""
        return load_columns(self.tile, buffer, indices, self.config.out_features, whole)

    def store(self, row: Expr, column: Expr, value: Expr, whole: bool, last: bool) -> None:
        """Emit the store of one vector of y; the ``last`` one is scaled and adds the bias first."""
        if last:
            bias = None if self.bias is None else self.load(self.bias, [column], whole)
            if self.scale is not None:
                scale = self.load(self.scale, [column], whole)
                value = value * scale if bias is None else self.tile.fma(value, scale, bias)
            elif bias is not None:
                value = value + bias
        store_columns(self.tile, self.y, [row, column], value, self.config.out_features, whole)


def _one_row(buffers: _Buffers) -> None:
    config = buffers.config
    vectors = config.one_row_panels * config.vectors
    whole = config.out_features % (config.one_row_panels * config.panel_width) == 0
    groups = emit.ceil_div(config.panels, config.one_row_panels)
    with emit.tasks("group", groups) as group:

        def vector(k: Expr, v: Expr) -> Expr:
            panel = group * config.one_row_panels + v // config.vectors
            # Panels past the end read the last one again; what they compute is stored nowhere.
            return buffers.columns(panel if whole else T.min(panel, config.panels - 1), k, v % config.vectors)

        def load(row: Expr, v: Expr) -> Expr:
            return buffers.load(buffers.y, [row, (group * vectors + v) * config.tile.lanes], whole)

        def store(row: Expr, v: Expr, value: Expr, last: bool) -> None:
            buffers.store(row, (group * vectors + v) * config.tile.lanes, value, whole, last)

        def sweep(step: Step) -> None:
            with emit.loop("k", config.in_features) as k:
                step(lambda row: buffers.x[row, k], lambda v: vector(k, v))

        register_tile(config.tile, 1, vectors, sweep, load, store)


def _several_rows(buffers: _Buffers) -> None:
    config, lanes = buffers.config, buffers.config.tile.lanes
    whole = config.out_features % config.panel_width == 0
    tiles = RowTiles(buffers.rows, config.rows)
    row_tasks = emit.bind("row_tasks", tiles.tasks(config.task_tiles))
    with (
        emit.tasks("task", emit.ceil_div(config.panels, config.task_panels) * row_tasks) as task,
        emit.loop("block", DepthBlock.count(config.in_features, config.depth_block)) as block_index,
    ):
        first_panel = emit.bind("first_panel", task // row_tasks * config.task_panels)
        block = DepthBlock(config.in_features, config.depth_block, block_index)

        def row_tile(height: int, start: Expr) -> None:
            with emit.loop("panel", T.min(config.panels - first_panel, emit.index(config.task_panels))) as of_task:
                panel = emit.bind("panel", first_panel + of_task)
                column = emit.bind("column", panel * config.panel_width)
                register_tile(
                    config.tile,
                    height,
                    config.vectors,
                    block.sweep(
                        lambda k, row: buffers.x[start + row, k],
                        lambda k, v: buffers.columns(panel, block.begin + k, v),
                    ),
                    load=lambda row, v: buffers.load(buffers.y, [start + row, column + v * lanes], whole),
                    store=lambda row, v, value, last: buffers.store(
                        start + row, column + v * lanes, value, whole, last
                    ),
                    first=block.first,
                    last=block.last,
                )

        tiles.each(task % row_tasks, config.task_tiles, row_tile)


def linear_dense(config: LinearDense) -> Any:
    """The PrimFunc ``(x (M, K), weight (packed), [scale (N,)], [bias (N,)], y (M, N))``; all float32 but the weight."""

    def body() -> None:
        buffers = _Buffers(config)
        emit.branch(buffers.rows == 1, lambda: _one_row(buffers), lambda: _several_rows(buffers))

    return emit.prim_func("linear_dense", body)
