"""Convolution of images in NCHW, float32: stride, padding, dilation, groups and bias; the batch is known at run time.

A direct convolution. Output channels are the rows of the register tile and output pixels its vectors, on the flat grid
of :mod:`planish.codegen.kernels.conv2d_geometry`; every tap is then a plain vector load. Inputs that need padding or a
stride are first copied into phases, others are read in place. An output element is the chain of fused multiply-adds of
:mod:`planish.codegen.kernels.float_gemm` over input channel, kernel row and kernel column, padding included as zeros,
the bias added last: its bits do not depend on the batch or on how the work is cut.

A convolution over one dimension is one over images of height 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.conv2d_geometry import ConvGeometry
from planish.codegen.kernels.conv2d_packing import pack_filters
from planish.codegen.kernels.conv2d_planes import split_plane
from planish.codegen.kernels.float_gemm import (
    DepthBlock,
    RowTiles,
    Step,
    Sweep,
    check_registers,
    load_columns,
    register_tile,
    store_columns,
)
from planish.codegen.tiles.float import Expr, FloatTile

_MOST_UNROLLED_TAPS = 9
_LEAST_TASKS = 8


@dataclass(frozen=True)
class Conv2d:
    """One convolution kernel: the problem first, then how it is cut.

    Attributes:
        in_channels, out_channels, groups: as in ``torch.nn.Conv2d``.
        geometry: sizes of image, kernel, stride, padding and dilation.
        bias: whether the kernel takes a float32 bias (out_channels,).
        tile: the machine's vectors.
        rows, vectors: largest register tile, in output channels and in vectors of pixels; a panel has ``vectors``.
        channel_block: input channels between two visits of an output element.
        task_panels, task_tiles: panels of pixels and tiles of output channels in one task of one thread.
    """

    in_channels: int
    out_channels: int
    groups: int
    geometry: ConvGeometry
    bias: bool
    tile: FloatTile
    rows: int
    vectors: int
    channel_block: int
    task_panels: int
    task_tiles: int

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.out_channels, self.groups, self.rows, self.vectors)
        if min(*sizes, self.channel_block, self.task_panels, self.task_tiles) < 1:
            raise ValueError(f"every size of a convolution must be at least 1: {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {self.in_channels} input and {self.out_channels} output channels"
            )
        check_registers(self.tile, self.rows, self.vectors)

    @property
    def group_inputs(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def depth(self) -> int:
        """Steps of one chain."""
        return self.group_inputs * self.geometry.kernel[0] * self.geometry.kernel[1]

    @property
    def panel_width(self) -> int:
        """Grid positions in one panel."""
        return self.vectors * self.tile.lanes

    @property
    def panels(self) -> int:
        """Panels that cover the grid."""
        return int(emit.ceil_div(self.geometry.grid, self.panel_width))


def pack_weight(config: Conv2d, weight: torch.Tensor) -> torch.Tensor:
    """``weight`` as ``torch.nn.Conv2d`` has it, in the layout the kernel of ``config`` reads: one dimension.

    Raises:
        ValueError: when shape or dtype are not those of ``config``.
    """
    expected = (config.out_channels, config.group_inputs, *config.geometry.kernel)
    if tuple(weight.shape) != expected:
        raise ValueError(f"this convolution packs a weight of shape {expected}, not {tuple(weight.shape)}")
    return pack_filters(weight, config.groups, config.rows)


def configurations(
    tile: FloatTile, in_channels: int, out_channels: int, groups: int, geometry: ConvGeometry, bias: bool
) -> list[Conv2d]:
    """The kernels worth trying for one layer on one machine; the first is the best guess."""
    shapes = [(6, 4), (8, 3), (12, 2), (14, 2)] if tile.registers >= 32 else [(6, 2), (4, 3)]
    outputs, taps = out_channels // groups, geometry.kernel[0] * geometry.kernel[1]
    if outputs < 4:
        # Few rows leave registers for more pixels, and chains that wait for themselves need them.
        most = (tile.registers - 1) // (outputs + 1)
        shapes = [(outputs, min(most, 8 // outputs)), (outputs, min(most, 4))]

    def padding(shape: tuple[int, int]) -> int:
        """Grid positions computed, in twentieths of those asked for: less waste first, small differences ignored."""
        width = shape[1] * tile.lanes
        return 20 * width * int(emit.ceil_div(geometry.grid, width)) // geometry.grid

    found = []
    for rows, vectors in sorted(dict.fromkeys(shapes), key=padding):
        panels = int(emit.ceil_div(geometry.grid, vectors * tile.lanes))
        tiles = int(emit.ceil_div(outputs, rows))
        for task_panels in (4, 2, 8):
            others = groups * int(emit.ceil_div(panels, task_panels))
            task_tiles = int(emit.ceil_div(tiles, min(tiles, emit.ceil_div(_LEAST_TASKS, others))))
            for steps in (512, 1024):
                block = max(1, steps // taps)
                found.append(
                    Conv2d(
                        in_channels,
                        out_channels,
                        groups,
                        geometry,
                        bias,
                        tile,
                        rows,
                        vectors,
                        min(block, in_channels // groups),
                        min(task_panels, panels),
                        task_tiles,
                    )
                )
    return list(dict.fromkeys(found))


class _Convolution:
    """The arguments of one kernel, its padded input, and the accesses of its register tiles."""

    def __init__(self, config: Conv2d) -> None:
        self.config, self.geometry, self.tile = config, config.geometry, config.tile
        geometry, outputs = config.geometry, config.geometry.out[0] * config.geometry.out[1]
        self.batch = emit.symbol("batch")
        x = emit.argument("x", (self.batch, config.in_channels, *geometry.image), "float32")
        self.weight = emit.argument("weight", (config.out_channels * config.depth,), "float32")
        self.bias = emit.argument("bias", (config.out_channels,), "float32") if config.bias else None
        y = emit.argument("y", (self.batch, config.out_channels, *geometry.out), "float32")
        self.y = emit.view("flat_y", y, self.batch * config.out_channels * outputs)
        inputs = self.batch * config.in_channels
        if geometry.is_identity:
            self.planes = emit.view("planes", x, inputs * geometry.plane)
            return
        # The last panel of a plane reads on into the next one; the last plane has something behind it to read.
        self.planes = emit.scratch("planes", inputs * geometry.plane + config.panels * config.panel_width)
        with emit.loop("plane", inputs, parallel=True) as plane:

            def pixel(row: Expr, column: Expr) -> Expr:
                return x[plane // config.in_channels, plane % config.in_channels, row, column]

            split_plane(geometry, pixel, self.planes, plane * geometry.plane)

    def sweep(self, block: DepthBlock, weight: Expr, pixel: Expr, height: int, left: Expr | None) -> Sweep:
        """The steps over one block of input channels: channel, kernel row, kernel column.

        Args:
            block: the channels, counted within the group.
            weight: where the tile of output channels starts.
            pixel: the place in the planes of the first position of the panel, for tap (0, 0) of channel 0.
            height: output channels of the tile.
            left: positions of the panel that may be read, None for all.
        """
        geometry, lanes = self.geometry, self.tile.lanes
        rows, columns = geometry.kernel
        unrolled = rows * columns <= _MOST_UNROLLED_TAPS

        def taps(name: str, extent: int) -> Any:
            return emit.unrolled(name, extent) if unrolled else emit.loop(name, extent)

        def sweep(step: Step) -> None:
            with (
                emit.loop("channel", block.steps) as of_block,
                taps("kernel_row", rows) as row,
                taps("kernel_column", columns) as column,
            ):
                channel = block.begin + of_block
                k = (channel * rows + row) * columns + column
                at = pixel + channel * geometry.plane + geometry.tap_offset(row, column)

                def vector(v: Expr) -> Expr:
                    place = at + v * lanes
                    if left is None:
                        return emit.load(self.planes, [place], lanes)
                    return load_columns(self.tile, self.planes, [place], at + left, whole=False)

                step(lambda of_tile: self.weight[weight + k * height + of_tile], vector)

        return sweep

    def with_bias(self, value: Expr, channel: Expr, last: bool) -> Expr:
        """A vector of one output channel, the bias added if it is final."""
        return value + self.tile.broadcast(self.bias[channel]) if last and self.bias is not None else value


def _task(convolution: _Convolution, image: Expr, group: Expr, first_panel: Expr, channel_task: Expr) -> None:
    """Some panels of pixels of some output channels of one group of one image."""
    self, config, geometry, lanes = convolution, convolution.config, convolution.geometry, convolution.tile.lanes
    outputs, width = geometry.out[0] * geometry.out[1], config.panel_width
    tiles = RowTiles(config.group_outputs, config.rows)
    task_width = config.task_panels * width
    first_channel = emit.bind("first_channel", tiles.first_row(channel_task, config.task_tiles))
    channels = emit.bind("channels", tiles.first_row(channel_task + 1, config.task_tiles) - first_channel)
    panels = emit.bind("panels", T.min(config.panels - first_panel, emit.index(config.task_panels)))
    group_plane = emit.bind("group_plane", (image * config.in_channels + group * config.group_inputs) * geometry.plane)
    group_y = emit.bind("group_y", (image * config.out_channels + group * config.group_outputs) * outputs)
    sums = None if geometry.is_dense else emit.scratch("sums", tiles.most_rows(config.task_tiles) * task_width)

    def row_tile(block: DepthBlock, height: int, start: Expr) -> None:
        weight = emit.bind("weight", (group * config.group_outputs + start) * config.depth)

        def one_panel(panel: Expr, whole: bool) -> None:
            position = emit.bind("position", (first_panel + panel) * width)
            left = emit.bind("left", geometry.grid - position)

            def place(row: Expr, v: Expr) -> Expr:
                if sums is not None:
                    return (start - first_channel + row) * task_width + panel * width + v * lanes
                return group_y + (start + row) * outputs + position + v * lanes

            def load(row: Expr, v: Expr) -> Expr:
                if sums is not None:
                    return emit.load(sums, [place(row, v)], lanes)
                return load_columns(config.tile, self.y, [place(row, v)], place(row, emit.index(0)) + left, whole)

            def store(row: Expr, v: Expr, value: Expr, last: bool) -> None:
                value = self.with_bias(value, group * config.group_outputs + start + row, last)
                if sums is not None:
                    emit.store(sums, [place(row, v)], value, lanes)
                else:
                    end = place(row, emit.index(0)) + left
                    store_columns(config.tile, self.y, [place(row, v)], value, end, whole)

            readable = left if geometry.is_identity and not whole else None
            sweep = self.sweep(block, weight, group_plane + position, height, readable)
            register_tile(config.tile, height, config.vectors, sweep, load, store, block.first, block.last)

        with emit.loop("panel", panels) as panel:
            divides = geometry.grid % width == 0
            emit.branch(
                divides or (first_panel + panel + 1) * width <= geometry.grid,
                lambda: one_panel(panel, True),
                lambda: one_panel(panel, False),
            )

    with emit.loop("block", DepthBlock.count(config.group_inputs, config.channel_block)) as index:
        block = DepthBlock(config.group_inputs, config.channel_block, index)
        tiles.each(channel_task, config.task_tiles, lambda height, start: row_tile(block, height, start))
    if sums is not None:
        _copy_out(convolution, sums, group_y, first_panel * width, panels * width, first_channel, channels)


def _copy_out(
    convolution: _Convolution, sums: Expr, y: Expr, begin: Expr, length: Expr, first_channel: Expr, channels: Expr
) -> None:
    """Leave out the columns of the grid that are no output: positions ``begin`` to ``begin + length`` go to y."""
    config, geometry = convolution.config, convolution.geometry
    (height, width), grid_width = geometry.out, geometry.phase_size[1]
    first_row = emit.bind("first_row", begin // grid_width)
    rows = emit.bind("rows", T.min((begin + length - 1) // grid_width + 1, emit.index(height)) - first_row)
    with emit.loop("channel", channels) as channel, emit.loop("row", rows) as of_task:
        row = first_row + of_task
        first = emit.bind("first", T.max(begin - row * grid_width, emit.index(0)))
        last = emit.bind("last", T.min(begin + length - row * grid_width, emit.index(width)))
        source = emit.bind("source", channel * (config.task_panels * config.panel_width) + row * grid_width - begin)
        target = emit.bind("target", y + ((first_channel + channel) * height + row) * width)
        with emit.loop("column", T.max(last - first, emit.index(0))) as column:
            T.buffer_store(convolution.y, sums[source + first + column], [target + first + column])


def conv2d(config: Conv2d) -> Any:
    """The PrimFunc ``(x (B, C, H, W), weight (packed), [bias (O,)], y (B, O, H', W'))`` of ``config``, all float32."""

    def body() -> None:
        convolution = _Convolution(config)
        pixel_tasks = int(emit.ceil_div(config.panels, config.task_panels))
        channel_tasks = int(RowTiles(config.group_outputs, config.rows).tasks(config.task_tiles))
        tasks = convolution.batch * (config.groups * pixel_tasks * channel_tasks)
        with emit.loop("task", tasks, parallel=True) as task:
            image = emit.bind("image", task // (config.groups * pixel_tasks * channel_tasks))
            group = emit.bind("group", task // (pixel_tasks * channel_tasks) % config.groups)
            first_panel = emit.bind("first_panel", task // channel_tasks % pixel_tasks * config.task_panels)
            _task(convolution, image, group, first_panel, emit.bind("channel_task", task % channel_tasks))

    return emit.prim_func("conv2d", body)
