"""Which convolution, and how its work is cut: the configuration of :mod:`planish.codegen.kernels.conv2d`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planish.codegen.kernels import emit
from planish.codegen.kernels.conv2d_geometry import ConvGeometry
from planish.codegen.kernels.conv2d_packing import pack_filters
from planish.codegen.kernels.float_gemm import check_registers
from planish.codegen.tiles.float import FloatTile

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
