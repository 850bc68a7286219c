"""Convolution of images in NCHW, float32, for GPUs; the chains, and so the bits, of `kernels/conv2d.py`.

Output channels of a group are the rows of a matrix product, output pixels its columns, and its depth runs over input
channel, kernel row and kernel column: B(k, n) is the pixel that tap k reads for output n, taken from the image where it
lies. Where a group has few output channels a thread computes one pixel of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.float_gemm import Factor, Product, launch
from planish.codegen.kernels.conv2d_geometry import ConvGeometry
from planish.codegen.tiles.float import Expr

_FEW_OUTPUTS = 8
"""Fewer output channels of a group than this would leave most of a tile empty."""
_MANY_PIXELS = 4096
"""From this many pixels on an image fills tiles by itself; smaller ones share them."""


@dataclass(frozen=True)
class ConvBlocks:
    """One convolution kernel.

    Attributes:
        in_channels, out_channels, groups: as in ``torch.nn.Conv2d``.
        geometry: sizes of image, kernel, stride, padding and dilation.
        bias: whether the kernel takes a float32 bias (out_channels,).
        wide: whether tiles are wide (see `float_gemm`).
    """

    in_channels: int
    out_channels: int
    groups: int
    geometry: ConvGeometry
    bias: bool
    wide: bool = False

    def __post_init__(self) -> None:
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {self.in_channels} input and {self.out_channels} output channels"
            )

    @property
    def group_inputs(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Elements of one filter and one input channel."""
        return self.geometry.kernel[0] * self.geometry.kernel[1]

    @property
    def pixels(self) -> int:
        """Pixels of one output plane."""
        return self.geometry.out[0] * self.geometry.out[1]

    @property
    def is_direct(self) -> bool:
        """Whether a thread computes a pixel, without tiles."""
        return self.group_outputs < _FEW_OUTPUTS


class _Convolution:
    """The arguments of one kernel and their elements."""

    def __init__(self, config: ConvBlocks) -> None:
        self.config, geometry = config, config.geometry
        self.images = emit.symbol("batch")
        self.depth = config.group_inputs * config.taps
        self.x = emit.argument("x", (self.images, config.in_channels, *geometry.image), "float32")
        shape = (config.out_channels, config.group_inputs, *geometry.kernel)
        weight = emit.argument("weight", shape, "float32")
        self.bias = emit.argument("bias", (config.out_channels,), "float32") if config.bias else None
        y = emit.argument("y", (self.images, config.out_channels, *geometry.out), "float32")
        self.weight = emit.view("filters", weight, config.out_channels * self.depth)
        self.y = emit.view("flat_y", y, self.images * config.out_channels * config.pixels)

    def tap(self, channel: Expr, k: Expr) -> Expr:
        """Element k of the filter of an output channel."""
        return self.weight[channel * self.depth + k]

    def pixel(self, image: Expr, group: Expr, pixel: Expr, k: Expr) -> Expr:
        """What tap k of a group reads for an output pixel: zero in the padding."""
        config, geometry = self.config, self.config.geometry
        # A plane and a filter have fewer than 2^31 elements, and short divisions are several times as fast.
        at, step = math.hold(T.cast(pixel, "int32")), math.hold(T.cast(k, "int32"))
        tap = step % config.taps
        taps = (tap // geometry.kernel[1], tap % geometry.kernel[1])
        outs = (at // geometry.out[1], at % geometry.out[1])
        places = [
            math.hold(outs[d] * geometry.stride[d] + taps[d] * geometry.dilation[d] - geometry.padding[d])
            for d in range(2)
        ]
        channel = group * config.group_inputs + T.cast(step // config.taps, "int64")
        value = self.x[(image, channel, *(T.cast(place, "int64") for place in places))]
        inside = None
        for d, place in enumerate(places):
            if geometry.padding[d]:
                within = T.And(place >= 0, place < geometry.image[d])
                inside = within if inside is None else T.And(inside, within)
        return value if inside is None else T.if_then_else(inside, value, T.float32(0))

    def store(self, image: Expr, channel: Expr, pixel: Expr, value: Expr) -> None:
        """Emit the store of an output element, the bias added last."""
        if self.bias is not None:
            value = value + self.bias[channel]
        T.buffer_store(self.y, value, [(image * self.config.out_channels + channel) * self.config.pixels + pixel])


def _product(convolution: _Convolution) -> Product:
    config, pixels = convolution.config, convolution.config.pixels
    together = pixels < _MANY_PIXELS
    images = convolution.images

    def place(batch: Expr, column: Expr) -> tuple[Expr, Expr, Expr]:
        """(image, group, pixel) of a column of one of the products."""
        if together:
            return column // pixels, batch, column % pixels
        return batch // config.groups, batch % config.groups, column

    def pixel(batch: Expr, column: Expr, k: Expr) -> Expr:
        image, group, at = place(batch, column)
        return convolution.pixel(image, group, at, k)

    def tap(batch: Expr, row: Expr, k: Expr) -> Expr:
        return convolution.tap(place(batch, emit.index(0))[1] * config.group_outputs + row, k)

    def store(batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
        image, group, at = place(batch, column)
        convolution.store(image, group * config.group_outputs + row, at, value)

    return Product(
        batch=config.groups if together else images * config.groups,
        rows=config.group_outputs,
        columns=images * pixels if together else pixels,
        depth=convolution.depth,
        left=Factor(tap, along_depth=True),
        right=Factor(pixel, along_depth=False),
        store=store,
        wide=config.wide,
    )


def _direct(convolution: _Convolution) -> None:
    """A thread to a pixel of all output channels of a group."""
    config, outputs = convolution.config, convolution.config.group_outputs
    planes = convolution.images * config.groups
    with emit.tasks("task", planes * config.pixels) as task:
        pixel = emit.bind("pixel", task % config.pixels)
        plane = emit.bind("plane", task // config.pixels)
        image, group = emit.bind("image", plane // config.groups), emit.bind("group", plane % config.groups)
        sums = emit.registers("sums", outputs)
        for of_group in range(outputs):
            T.buffer_store(sums, T.float32(0), [of_group])
        with emit.loop("k", convolution.depth) as k:
            value = math.hold(convolution.pixel(image, group, pixel, k))
            for of_group in range(outputs):
                tap = convolution.tap(group * outputs + of_group, k)
                T.buffer_store(sums, math.fma(tap, value, sums[of_group]), [of_group])
        for of_group in range(outputs):
            convolution.store(image, group * outputs + of_group, pixel, sums[of_group])


def conv2d(config: ConvBlocks) -> Any:
    """The PrimFunc ``(x (B, C, H, W), weight (O, C / groups, R, S), [bias (O,)], y (B, O, H', W'))``, all float32."""

    def body() -> None:
        convolution = _Convolution(config)
        if config.is_direct:
            _direct(convolution)
        else:
            launch(_product(convolution))

    return emit.prim_func("conv2d", body)
