"""Rows of a table picked by index, the table dense or of grouped integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.vectors import for_rows, storage
from planish.codegen.pointwise.dtypes import loaded
from planish.codegen.tiles.float import Expr

INDEX_DTYPES = ("int64", "int32")
CODE_BITS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Embedding:
    """One embedding kernel.

    Attributes:
        entries, width: V and D of the table.
        dtype: logical dtype of the table's elements, or of its scales when it is grouped.
        bits: bits of one code of a grouped table, or None for a dense one.
        group: consecutive elements of a row that share a scale.
        index_dtype: int64 or int32.
    """

    entries: int
    width: int
    dtype: str
    bits: int | None = None
    group: int = 1
    index_dtype: str = "int64"

    def __post_init__(self) -> None:
        storage(self.dtype, "an embedding's table and scales")
        if self.index_dtype not in INDEX_DTYPES:
            raise ValueError(
                f"an embedding's indices cannot be {self.index_dtype}: use one of {', '.join(INDEX_DTYPES)}"
            )
        if self.bits is not None and self.bits not in CODE_BITS:
            raise ValueError(f"an embedding's codes cannot have {self.bits} bits: use one of {CODE_BITS}")
        if self.bits is not None and (self.width % self.group or self.group * self.bits % 8):
            raise ValueError(
                f"groups of {self.group} elements of {self.bits} bits must fill whole bytes and divide a row of {self.width}"
            )


def embedding(config: Embedding) -> Any:
    """The PrimFunc ``y[m] = table[ids[m]]`` in float32; a call with an index outside the table raises RuntimeError.

    Dense: ``(ids (M,), table (V, D), y (M, D))``. Grouped: ``(ids (M,), values uint8 (V, D * bits / 8),
    scales (V, D / group), y (M, D))``, where the code q of an element stands for (q - 2^(bits - 1)) * scale and the
    element of the lowest index lies in the lowest bits of a byte.
    """

    dtype = getattr(torch, config.dtype)

    def body() -> None:
        rows = emit.symbol("rows")
        ids = emit.argument("ids", (rows,), config.index_dtype)
        kept = storage(config.dtype, "an embedding's table and scales")
        if config.bits is None:
            table = emit.argument("table", (config.entries, config.width), kept)
        else:
            values = emit.argument("values", (config.entries, config.width * config.bits // 8), "uint8")
            scales = emit.argument("scales", (config.entries, config.width // config.group), kept)
        y = emit.argument("y", (rows, config.width), "float32")

        message = f"embedding: an index is outside the table of {config.entries} entries"
        current().check(rows, lambda row: T.And(ids[row] >= 0, ids[row] < config.entries), message)

        def dense(row: Expr) -> None:
            entry = emit.bind("entry", T.cast(ids[row], "int64"))
            with emit.loop("column", config.width) as column:
                T.buffer_store(y, loaded(table[entry, column], dtype), [row, column])

        def grouped(row: Expr) -> None:
            assert config.bits is not None
            entry = emit.bind("entry", T.cast(ids[row], "int64"))
            per_byte = 8 // config.bits
            group_bytes = config.group // per_byte
            zero, mask = 1 << (config.bits - 1), (1 << config.bits) - 1
            with emit.loop("group", config.width // config.group) as group:
                scale = T.Bind(loaded(scales[entry, group], dtype))
                with emit.loop("byte", group_bytes) as byte:
                    packed = T.Bind(T.cast(values[entry, group * group_bytes + byte], "int32"))
                    for part in range(per_byte):
                        code = (packed >> (part * config.bits)) & mask
                        column = (group * group_bytes + byte) * per_byte + part
                        T.buffer_store(y, T.cast(code - zero, "float32") * scale, [row, column])

        for_rows(rows, config.width, dense if config.bits is None else grouped)

    return emit.prim_func("embedding", body)
