"""Rows of a table picked by index, the table dense or of grouped integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.codes import code_at, unit_codes
from planish.codegen.kernels.vectors import for_rows, storage
from planish.codegen.pointwise.dtypes import loaded
from planish.codegen.tiles.float import Expr
from planish.ir import Grouped, TensorType
from planish.ir.encodings.packing import BitPacking

INDEX_DTYPES = ("int64", "int32")


@dataclass(frozen=True)
class Embedding:
    """One embedding kernel.

    Attributes:
        entries, width: V and D of the table.
        dtype: logical dtype of the table's elements, or of its scales when it is grouped.
        encoding: of a grouped table, or None for a dense one.
        index_dtype: int64 or int32.
    """

    entries: int
    width: int
    dtype: str
    encoding: Grouped | None = None
    index_dtype: str = "int64"

    def __post_init__(self) -> None:
        storage(self.dtype, "an embedding's table and scales")
        if self.index_dtype not in INDEX_DTYPES:
            raise ValueError(
                f"an embedding's indices cannot be {self.index_dtype}: use one of {', '.join(INDEX_DTYPES)}"
            )


def embedding(config: Embedding) -> Any:
    """The PrimFunc ``y[m] = table[ids[m]]`` in float32; a call with an index outside the table raises RuntimeError.

    Dense: ``(ids (M,), table (V, D), y (M, D))``. Grouped: ``(ids (M,), the tensors of the encoding's layout for (V, D),
    y (M, D))``.
    """

    dtype = getattr(torch, config.dtype)

    def body() -> None:
        rows = emit.symbol("rows")
        ids = emit.argument("ids", (rows,), config.index_dtype)
        kept = storage(config.dtype, "an embedding's table and scales")
        if config.encoding is None:
            table = emit.argument("table", (config.entries, config.width), kept)
        else:
            layout = config.encoding.layout(TensorType(torch.float32, (config.entries, config.width)))
            stored = {
                field: emit.argument(field, kind.concrete({}), kept if field == "scales" else "uint8")
                for field, kind in layout.items()
            }
        y = emit.argument("y", (rows, config.width), "float32")

        message = f"embedding: an index is outside the table of {config.entries} entries"
        current().check(rows, lambda row: T.And(ids[row] >= 0, ids[row] < config.entries), message)

        def dense(row: Expr) -> None:
            entry = emit.bind("entry", T.cast(ids[row], "int64"))
            with emit.loop("column", config.width) as column:
                T.buffer_store(y, loaded(table[entry, column], dtype), [row, column])

        def grouped(row: Expr) -> None:
            assert config.encoding is not None
            entry = emit.bind("entry", T.cast(ids[row], "int64"))
            _decode(config.encoding, config.width, dtype, stored, entry, lambda at, x: T.buffer_store(y, x, [row, at]))

        for_rows(rows, config.width, dense if config.encoding is None else grouped)

    return emit.prim_func("embedding", body)


def _decode(
    encoding: Grouped,
    width: int,
    dtype: torch.dtype,
    stored: Mapping[str, Expr],
    entry: Expr,
    write: Callable[[Expr, Expr], None],
) -> None:
    """``write(column, element)`` for every element of a row of the table."""
    packing, grid = encoding.packing, encoding.grid

    def of_group(group: Expr) -> tuple[Expr, Expr]:
        """A group's scale, and what its codes have to gain."""
        scale, first = T.bind(loaded(stored["scales"][entry, group], dtype)), T.int32(grid.first)
        if "zeros" in stored:
            assert isinstance(packing, BitPacking)
            first = T.bind(first - code_at(packing, stored["zeros"], entry, group))
        return scale, first

    def of_unit(unit: Expr, group: tuple[Expr, Expr] | None) -> None:
        for part, code in enumerate(unit_codes(packing, stored["values"], entry, unit)):
            column = unit * packing.unit_codes + part

            def element(column: Expr = column, code: Expr = code) -> None:
                scale, first = group or of_group(T.truncdiv(column, encoding.group))
                write(column, T.cast(code * grid.step + first, "float32") * scale)

            emit.branch(column < width if width % packing.unit_codes else True, element)

    if encoding.group % packing.unit_codes == 0:
        units = encoding.group // packing.unit_codes
        with emit.loop("group", width // encoding.group) as group:
            known = of_group(group)
            with emit.loop("unit", units) as unit:
                of_unit(group * units + unit, known)
    else:
        with emit.loop("unit", emit.ceil_div(width, packing.unit_codes)) as unit:
            of_unit(unit, None)
