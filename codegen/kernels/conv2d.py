"""Convolution of images in NCHW, float32: stride, padding, dilation, groups and bias; the batch is known at run time.

A direct convolution. Output channels are the rows of the register tile and output pixels its vectors, on the flat grid
of :mod:`planish.codegen.kernels.conv2d_geometry`; every tap is then a plain vector load. Inputs that need padding or a
stride are first copied into phases, others are read in place. An output element is the chain of fused multiply-adds of
:mod:`planish.codegen.kernels.float_gemm` over input channel, kernel row and kernel column, padding included as zeros,
the bias added last: its bits do not depend on the batch or on how the work is cut.

A convolution over one dimension is one over images of height 1.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.conv2d_config import Conv2d, configurations, pack_weight
from planish.codegen.kernels.conv2d_planes import split_plane
from planish.codegen.kernels.float_gemm import (
    DepthBlock,
    RowTiles,
    Step,
    Sweep,
    load_columns,
    register_tile,
    store_columns,
)
from planish.codegen.tiles.float import Expr

__all__ = ["Conv2d", "configurations", "conv2d", "pack_weight"]

_MOST_UNROLLED_TAPS = 9


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
        with emit.tasks("plane", inputs) as plane:

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


class _Task:
    """Some panels of pixels of some output channels of one group of one image."""

    def __init__(self, convolution: _Convolution, image: Expr, group: Expr, first_panel: Expr, channel_task: Expr):
        self.convolution, self.config, self.geometry = convolution, convolution.config, convolution.geometry
        self.group, self.first_panel, self.channel_task = group, first_panel, channel_task
        config, geometry = self.config, self.geometry
        self.outputs = geometry.out[0] * geometry.out[1]
        self.width = config.task_panels * config.panel_width
        self.panels = emit.bind("panels", T.min(config.panels - first_panel, emit.index(config.task_panels)))
        self.tiles = RowTiles(config.group_outputs, config.rows)
        self.first_channel = emit.bind("first_channel", self.tiles.first_row(channel_task, config.task_tiles))
        plane = image * config.in_channels + group * config.group_inputs
        self.plane = emit.bind("plane", plane * geometry.plane)
        self.y = emit.bind("y", (image * config.out_channels + group * config.group_outputs) * self.outputs)
        # With columns that are no output, sums wait here [channel][position] and only outputs go to y.
        rows = self.tiles.most_rows(config.task_tiles)
        self.sums = None if geometry.is_dense else emit.scratch("sums", rows * self.width)

    def emit(self) -> None:
        """Emit the whole task."""
        config = self.config
        with emit.loop("block", DepthBlock.count(config.group_inputs, config.channel_block)) as index:
            block = DepthBlock(config.group_inputs, config.channel_block, index)
            self.tiles.each(
                self.channel_task, config.task_tiles, lambda height, start: self._channels(block, height, start)
            )
        if self.sums is not None:
            self._copy_out(self.sums)

    def _channels(self, block: DepthBlock, height: int, start: Expr) -> None:
        """One tile of output channels over one block of input channels, for every panel of the task."""
        width, grid = self.config.panel_width, self.geometry.grid
        with emit.loop("panel", self.panels) as panel:
            emit.branch(
                grid % width == 0 or (self.first_panel + panel + 1) * width <= grid,
                lambda: self._tile(block, height, start, panel, True),
                lambda: self._tile(block, height, start, panel, False),
            )

    def _tile(self, block: DepthBlock, height: int, start: Expr, panel: Expr, whole: bool) -> None:
        """One register tile; ``whole`` if no position of its panel is past the grid."""
        config, tile, lanes, sums = self.config, self.config.tile, self.config.tile.lanes, self.sums
        position = emit.bind("position", (self.first_panel + panel) * config.panel_width)
        left = emit.bind("left", self.geometry.grid - position)
        first_weight = emit.bind("first_weight", (self.group * config.group_outputs + start) * config.depth)
        channel = emit.bind("channel", self.group * config.group_outputs + start)

        def in_sums(row: Expr, v: Expr) -> Expr:
            return (start - self.first_channel + row) * self.width + panel * config.panel_width + v * lanes

        def in_y(row: Expr) -> Expr:
            return self.y + (start + row) * self.outputs + position

        def load(row: Expr, v: Expr) -> Expr:
            if sums is not None:
                return emit.load(sums, [in_sums(row, v)], lanes)
            return load_columns(tile, self.convolution.y, [in_y(row) + v * lanes], in_y(row) + left, whole)

        def store(row: Expr, v: Expr, value: Expr, last: bool) -> None:
            if last and self.convolution.bias is not None:
                value = value + tile.broadcast(self.convolution.bias[channel + row])
            if sums is not None:
                emit.store(sums, [in_sums(row, v)], value, lanes)
            else:
                store_columns(tile, self.convolution.y, [in_y(row) + v * lanes], value, in_y(row) + left, whole)

        readable = left if self.geometry.is_identity and not whole else None
        sweep = self.convolution.sweep(block, first_weight, self.plane + position, height, readable)
        register_tile(tile, height, config.vectors, sweep, load, store, block.first, block.last)

    def _copy_out(self, sums: Expr) -> None:
        """Copy the positions that are outputs from the sums to y, row by row of the image."""
        (height, width), grid_width = self.geometry.out, self.geometry.phase_size[1]
        begin = emit.bind("begin", self.first_panel * self.config.panel_width)
        end = emit.bind("end", begin + self.panels * self.config.panel_width)
        first_row = emit.bind("first_row", begin // grid_width)
        last_row = T.min((end - 1) // grid_width, emit.index(height - 1))
        channels = self.tiles.first_row(self.channel_task + 1, self.config.task_tiles) - self.first_channel
        with emit.loop("channel", channels) as channel, emit.loop("row", last_row + 1 - first_row) as of_task:
            row = first_row + of_task
            left = emit.bind("left", T.max(begin - row * grid_width, emit.index(0)))
            right = emit.bind("right", T.min(end - row * grid_width, emit.index(width)))
            source = emit.bind("source", channel * self.width + row * grid_width - begin + left)
            target = emit.bind("target", self.y + ((self.first_channel + channel) * height + row) * width + left)
            with emit.loop("column", T.max(right - left, emit.index(0))) as column:
                T.buffer_store(self.convolution.y, sums[source + column], [target + column])


def conv2d(config: Conv2d) -> Any:
    """The PrimFunc ``(x (B, C, H, W), weight (packed), [bias (O,)], y (B, O, H', W'))`` of ``config``, all float32."""

    def body() -> None:
        convolution = _Convolution(config)
        pixel_tasks = int(emit.ceil_div(config.panels, config.task_panels))
        channel_tasks = int(RowTiles(config.group_outputs, config.rows).tasks(config.task_tiles))
        of_image = config.groups * pixel_tasks * channel_tasks
        with emit.tasks("task", convolution.batch * of_image) as task:
            _Task(
                convolution,
                image=emit.bind("image", task // of_image),
                group=emit.bind("group", task // (pixel_tasks * channel_tasks) % config.groups),
                first_panel=emit.bind("first_panel", task // channel_tasks % pixel_tasks * config.task_panels),
                channel_task=emit.bind("channel_task", task % channel_tasks),
            ).emit()

    return emit.prim_func("conv2d", body)
