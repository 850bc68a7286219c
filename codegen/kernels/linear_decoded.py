"""Linear layer in float32 arithmetic with a weight of few bits that is decoded in registers; rows known at run time.

``y[m, n] = scale * sum_g w_scale[n, g] * dot(m, n, g) (+ bias[n])``, where ``dot(m, n, g)`` is the sum of ``x[m, k] *
level[n, k]`` over the elements k of group g, a level being what a code stands for, less its group's zero point. In float32
and in this order:

    dot = +0;  dot = fma(x[m, k], level[n, k], dot) for k of g in increasing order
    t = +0;  t = fma(dot(m, n, g), w_scale[n, g], t) for g = 0, 1, ...
    y = t (+ bias[n]), or where the whole weight has a scale t * scale, or fma(t, scale, bias[n])

So a scale costs one operation for a group, and a row of y has the same bits whatever the number of rows, the machine's tile
or the number of threads. Two programs stand behind one function:

- few rows share what is decoded in registers from the stream of the weight, and the speed of one is that of memory;
- many rows: a task decodes a depth block of a panel once, and its rows pass over that. Sums between blocks wait in y.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.float_gemm import RowTiles, Step, load_columns, register_tile, store_columns
from planish.codegen.kernels.linear_decoded_config import LinearDecoded
from planish.codegen.kernels.linear_decoded_levels import WORD, Levels, Part
from planish.codegen.kernels.packed_blocks import Block, PackedBlocks
from planish.codegen.tiles.float import Expr


def linear_decoded(config: LinearDecoded) -> Any:
    """The PrimFunc ``(x (M, K), weight (packed), [scale (1,)], [bias (N,)], y (M, N))`` of ``config``; floats are float32."""

    def body() -> None:
        layer = _Layer(config)

        def few(height: int) -> None:
            if height > config.few:
                _many_rows(layer)
                return
            emit.branch(layer.rows == height, lambda: _few_rows(layer, height), lambda: few(height + 1))

        few(1)

    return emit.prim_func("linear_decoded", body)


class _Layer:
    """The arguments of one kernel and what its two programs share."""

    def __init__(self, config: LinearDecoded) -> None:
        self.config, self.tile, self.layout = config, config.tile, config.layout
        self.levels, self.lanes = Levels(config.layout, config.tile), config.tile.lanes
        self.rows = emit.symbol("rows")
        self.x = emit.argument("x", (self.rows, config.in_features), "float32")
        weight = emit.argument("weight", config.packed_shape, "uint8")
        self.blocks = PackedBlocks(weight, self.layout, config.panels, config.groups, config.prefetch)
        self.scale = emit.argument("scale", (1,), "float32") if config.tensor_scale else None
        self.bias = emit.argument("bias", (config.out_features,), "float32") if config.bias else None
        self.y = emit.argument("y", (self.rows, config.out_features), "float32")
        self.whole = config.out_features % self.layout.columns == 0

    def zeros(self, block: Block) -> list[Expr] | None:
        """The zero points of a block, by vector of columns, or None."""
        if not self.layout.zero_points:
            return None
        first = self.layout.value_bytes + self.layout.columns * self.layout.scale_bytes
        read = [self.blocks.read(block, first + v * self.lanes, self.lanes) for v in range(self.config.vectors)]
        return [T.bind(self.levels.zeros(stored)) for stored in read]

    def scales(self, block: Block, v: int) -> Expr:
        """The scales of one vector of columns in a block."""
        size = self.lanes * self.layout.scale_bytes
        return T.bind(self.levels.scale(self.blocks.read(block, self.layout.value_bytes + v * size, size)))

    def step(self, block: Block, step: Expr, zeros: list[Expr] | None, use: Callable[[int, int, Expr], None]) -> None:
        """``use(element of the step, vector of columns, levels)`` for one step of a block, elements in increasing order."""
        layout, size = self.layout, self.layout.vector_bytes
        word = f"uint{8 * layout.depth}x{self.lanes}"
        words: dict[tuple[int, int], Expr] = {}

        def loaded(v: int, load: int) -> Expr:
            """A load, made where it is first used: few of them are in registers at a time."""
            if (v, load) not in words:
                number = (step * self.config.vectors + v) * layout.loads + load
                stored = T.reinterpret(word, self.blocks.read(block, number * size, size))
                wide = stored if 8 * layout.depth == WORD else T.cast(stored, f"uint{WORD}x{self.lanes}")
                words[v, load] = T.bind(wide)
            return words[v, load]

        for product in range(layout.products):
            for byte in range(layout.depth):
                for v in range(self.config.vectors):
                    parts, first = [], 0
                    for plane in layout.planes:
                        load, field = divmod(product, plane.fields)
                        at = 8 * byte + plane.width * field
                        parts.append(Part(loaded(v, first + load), at, plane.width, plane.shift))
                        first += plane.loads
                    level = self.levels.level(parts)
                    use(product * layout.depth + byte, v, T.bind(level if zeros is None else level - zeros[v]))

    def finish(self, row: Expr, column: Expr, total: Expr, inside: bool = True) -> None:
        """Emit the last step for one vector of columns, leaving out those past the end, of panels perhaps not ``inside``."""
        whole = self.whole and inside
        bias = None if self.bias is None else self._columns(self.bias, [column], whole)
        if self.scale is None:
            value = total if bias is None else total + bias
        else:
            scale = self.tile.broadcast(self.scale[0])
            value = total * scale if bias is None else self.tile.fma(total, scale, bias)
        self.keep(row, column, value, inside)

    def keep(self, row: Expr, column: Expr, value: Expr, inside: bool = True) -> None:
        """Emit the store of one vector of y."""
        store_columns(self.tile, self.y, [row, column], value, self.config.out_features, self.whole and inside)

    def kept(self, row: Expr, column: Expr) -> Expr:
        """One vector of y."""
        return self._columns(self.y, [row, column], self.whole)

    def _columns(self, buffer: Expr, indices: list[Expr], whole: bool) -> Expr:
        return load_columns(self.tile, buffer, indices, self.config.out_features, whole)


def _few_rows(layer: _Layer, height: int) -> None:
    """Rows 0 ... height - 1 of y, a few panels to a task: one chain of fused multiply-adds alone waits for itself."""
    config, layout, tile, lanes = layer.config, layer.layout, layer.tile, layer.lanes
    together = config.one_row_panels if height == 1 else 1
    zero = tile.broadcast(T.float32(0))

    with emit.tasks("task", emit.ceil_div(config.panels, together)) as task:
        # Panels past the end read the last one again; what they compute is stored nowhere.
        whole = config.panels % together == 0
        panels = [task * together + of_task for of_task in range(together)]
        read = [panel if whole else T.min(panel, emit.index(config.panels - 1)) for panel in panels]
        sums = [_Sums(layer, height) for _ in panels]
        for of_panel in sums:
            of_panel.set(of_panel.totals, lambda row, v: zero)
        with emit.loop("group", config.groups) as group:
            blocks = [layer.blocks.block(panel, group, once=True) for panel in read]
            zeros = [layer.zeros(block) for block in blocks]
            for of_panel in sums:
                of_panel.set(of_panel.dots, lambda row, v: zero)
            with emit.loop("step", layout.steps) as step:
                first = emit.bind("first", group * layout.group + step * (layout.depth * layout.products))
                for of_panel, block, points in zip(sums, blocks, zeros, strict=True):
                    layer.step(block, step, points, partial(of_panel.multiply, first))
            for of_panel, block in zip(sums, blocks, strict=True):
                of_panel.scale([layer.scales(block, v) for v in range(config.vectors)])
        for panel, of_panel in zip(panels, sums, strict=True):
            for row in range(height):
                for v in range(config.vectors):
                    total = emit.load(of_panel.totals[row], [v * lanes], lanes)
                    layer.finish(emit.index(row), panel * layout.columns + v * lanes, total, whole)


class _Sums:
    """Sums of a few rows in the columns of a panel: of the group under way, and of all before it."""

    def __init__(self, layer: _Layer, height: int) -> None:
        self.layer, self.tile, self.vectors = layer, layer.tile, layer.config.vectors
        self.dots, self.totals = (
            [emit.registers(name, self.vectors * layer.lanes) for _ in range(height)] for name in ("dots", "totals")
        )

    def set(self, sums: list[Expr], value: Callable[[int, int], Expr]) -> None:
        """Emit the stores of ``value(row, vector of columns)``."""
        for row, of_row in enumerate(sums):
            for v in range(self.vectors):
                emit.store(of_row, [v * self.tile.lanes], value(row, v), self.tile.lanes)

    def multiply(self, first: Expr, element: int, v: int, level: Expr) -> None:
        """Add what one level gives, of an element counted from ``first`` on."""
        at, lanes = v * self.tile.lanes, self.tile.lanes
        for row, dots in enumerate(self.dots):
            x = self.tile.broadcast(self.layer.x[row, first + element])
            emit.store(dots, [at], self.tile.fma(x, level, emit.load(dots, [at], lanes)), lanes)

    def scale(self, scales: list[Expr]) -> None:
        """Add the sums of a group, times its scales, to the others."""

        def total(row: int, v: int) -> Expr:
            dot, before = (
                emit.load(sums[row], [v * self.tile.lanes], self.tile.lanes) for sums in (self.dots, self.totals)
            )
            return self.tile.fma(dot, scales[v], before)

        self.set(self.totals, total)


def _many_rows(layer: _Layer) -> None:
    config, layout = layer.config, layer.layout
    tiles = RowTiles(layer.rows, config.rows)
    row_tasks = emit.bind("row_tasks", tiles.tasks(config.task_tiles))
    width, together = layout.columns, config.block_groups
    with emit.tasks("task", config.panels * row_tasks) as task:
        panel = emit.bind("panel", task // row_tasks)
        levels = emit.scratch("levels", together * layout.group * width)
        scales = emit.scratch("scales", together * width)
        with emit.loop("first", emit.ceil_div(config.groups, together)) as number:
            first = emit.bind("first_group", number * together)
            groups = emit.bind("groups", T.min(config.groups - first, emit.index(together)))
            with emit.loop("group", groups) as group:
                _decode(layer, panel, first + group, group, levels, scales)
            tiles.each(task % row_tasks, config.task_tiles, partial(_pass, layer, panel, first, groups, levels, scales))


def _decode(layer: _Layer, panel: Expr, group: Expr, place: Expr, levels: Expr, scales: Expr) -> None:
    """The levels of a block, [element, column], and its scales, in the places of one group."""
    layout, lanes, width = layer.layout, layer.lanes, layer.layout.columns
    block = layer.blocks.block(panel, group, once=False)
    zeros = layer.zeros(block)
    with emit.loop("step", layout.steps) as step:
        first = emit.bind("first", place * layout.group + step * (layout.depth * layout.products))

        def put(element: int, v: int, level: Expr) -> None:
            emit.store(levels, [(first + element) * width + v * lanes], level, lanes)

        layer.step(block, step, zeros, put)
    for v in range(layer.config.vectors):
        emit.store(scales, [place * width + v * lanes], layer.scales(block, v), lanes)


def _pass(
    layer: _Layer, panel: Expr, first: Expr, groups: Expr, levels: Expr, scales: Expr, height: int, start: Expr
) -> None:
    """``height`` rows from ``start`` on pass over the groups of one depth block."""
    config, layout, lanes, width = layer.config, layer.layout, layer.lanes, layer.layout.columns

    def each(statement: Callable[[Expr, Expr], None]) -> None:
        with emit.loop("row", height) as row, emit.unrolled("v", config.vectors) as v:
            statement(start + row, panel * width + v * lanes)

    zero = layer.tile.broadcast(T.float32(0))
    emit.branch(first == 0, lambda: each(lambda row, column: layer.keep(row, column, zero)))
    with emit.loop("group", groups) as group:
        begin = emit.bind("begin", (first + group) * layout.group)
        place = emit.bind("place", group * layout.group)

        def sweep(step: Step) -> None:
            with emit.loop("k", layout.group) as k:
                step(
                    lambda row: layer.x[start + row, begin + k],
                    lambda v: emit.load(levels, [(place + k) * width + v * lanes], lanes),
                )

        def add(row: Expr, v: Expr, dot: Expr, last: bool) -> None:
            at = start + row, panel * width + v * lanes
            scale = emit.load(scales, [group * width + v * lanes], lanes)
            layer.keep(*at, layer.tile.fma(dot, scale, layer.kept(*at)))

        register_tile(layer.tile, height, config.vectors, sweep, load=layer.kept, store=add)
    done = first + groups == config.groups
    emit.branch(done, lambda: each(lambda row, column: layer.finish(row, column, layer.kept(row, column))))
