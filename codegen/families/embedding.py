"""Tables of embeddings that are encoded in groups; dense ones are read element by element in fused loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels import embedding as kernels
from planish.codegen.stored import as_stored
from planish.ir import Dense, Grouped, Node, Param


@emitted_once
def _prim_func(config: kernels.Embedding) -> Any:
    return kernels.embedding(config)


class EmbeddingFamily(Family):
    """Picks rows, decodes them; a call with an index outside the table fails before it reads anything."""

    name: ClassVar[str] = "embedding"
    ops: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        ids, table = node.inputs
        param = site.param(table)
        assert ids is not None
        if param is None or param.type.dtype != torch.float32:
            return "the table is computed at run time, or is not float32"
        entries, width = param.type.concrete({})
        encoding = param.encoding
        index = str(ids.type.dtype).removeprefix("torch.")
        try:
            if isinstance(encoding, Grouped):
                dtype = str(encoding.scale_dtype).removeprefix("torch.")
                config = kernels.Embedding(entries, width, dtype, encoding, index)
            elif isinstance(encoding, Dense):
                dtype = str(encoding.dtype).removeprefix("torch.")
                config = kernels.Embedding(entries, width, dtype, index_dtype=index)
            else:
                return f"a table encoded as {encoding} has no kernel"
        except ValueError as error:
            return str(error)
        weights = tuple(_field(param, field) for field in encoding.layout(param.type))
        rows = product(ids.type.shape)

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [to.view(operands[0], [rows]), *(to.weight(w) for w in weights)]
            (y,) = to.call(_prim_func(config), inputs, [([rows, width], "float32")])
            return [to.view(y, node.output.type.shape)]

        return Kernel(
            name=f"{self.name}[{encoding}]",
            schedule="a row at a time",
            reads=(0,),
            emit=emit,
            weights=weights,
            traffic=rows * (param.nbytes // entries + 4 * width),
            work=rows * width,
        )


def _field(param: Param, field: str) -> Packed:
    """One storage tensor of the table, as it is."""
    kind = param.encoding.layout(param.type)[field]

    def make() -> torch.Tensor:
        return as_stored(param.storage()[field])

    # A dense table is stored under the name that other readers of it use.
    key = param.name if isinstance(param.encoding, Dense) else f"{param.name}:{field}"
    return Packed(key, kind.dtype, kind.concrete({}), make)
