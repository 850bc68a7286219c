"""The copy of an input plane into its phases, padded with zeros: see :mod:`planish.codegen.kernels.conv2d_geometry`."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.conv2d_geometry import ConvGeometry
from planish.codegen.tiles.float import Expr


def split_plane(geometry: ConvGeometry, pixel: Callable[[Expr, Expr], Expr], planes: Expr, start: Expr) -> None:
    """Emit the copy of one channel of one image.

    Args:
        geometry: the convolution.
        pixel: ``(row, column)`` to the element of the image.
        planes: one-dimensional buffer that receives ``geometry.plane`` elements.
        start: where in ``planes``.
    """
    height, width = geometry.phase_size
    rows, columns = geometry.phases(0), geometry.phases(1)
    with emit.loop("row_phase", len(rows)) as row_phase, emit.loop("column_phase", len(columns)) as column_phase:
        row_shift = row_phase * rows.step - geometry.padding[0]
        column_shift = column_phase * columns.step - geometry.padding[1]
        top, bottom = _inside(geometry, 0, row_shift)
        left, right = _inside(geometry, 1, column_shift)
        with emit.loop("row", height) as row:
            phase = row_phase * len(columns) + column_phase
            at = emit.bind("at", start + (phase * height + row) * width)

            def zeros(begin: Expr | int, end: Expr | int) -> None:
                with emit.loop("column", end - begin) as column:
                    T.buffer_store(planes, T.float32(0), [at + begin + column])

            def copy() -> None:
                zeros(0, left)
                with emit.loop("column", right - left) as of_image:
                    column = left + of_image
                    source = pixel(row * geometry.stride[0] + row_shift, column * geometry.stride[1] + column_shift)
                    T.buffer_store(planes, source, [at + column])
                zeros(right, width)

            emit.branch(T.And(row >= top, row < bottom), copy, lambda: zeros(0, width))


def _inside(geometry: ConvGeometry, d: int, shift: Expr) -> tuple[Expr, Expr]:
    """The range of positions p of a phase along d for which ``p * stride + shift`` lies inside the image."""
    stride = geometry.stride[d]
    begin = -(shift // stride)
    end = (geometry.image[d] - 1 - shift) // stride + 1

    def clamp(position: Expr) -> Expr:
        return T.max(emit.index(0), T.min(position, emit.index(geometry.phase_size[d])))

    return emit.bind("begin", clamp(begin)), emit.bind("end", clamp(end))
