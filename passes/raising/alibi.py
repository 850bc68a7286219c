"""ALiBi: a bias of slope times key position, recognised in the tensor that a model adds to its scores.

A softmax is unchanged by adding one number to a whole row, so slope * position of the key and slope * (key - query) are
the same bias, as long as the real tokens of a row stand next to each other.
"""

from __future__ import annotations

import torch

from planish.ir.module import ParamRef, Value
from planish.ir.ops import Positions
from planish.ir.types import same_dim
from planish.passes.graph import Graph
from planish.passes.raising.rope import CASTS, Reader

VIEWS = ("view.default", "reshape.default", "unsqueeze.default", "expand.default")


def alibi_slopes(term: Value, graph: Graph) -> ParamRef | None:
    """The slopes, f32 with one element a head, if `term` [batch, heads, 1, keys] is slopes times key positions, else None."""
    reader = Reader(graph)
    if term.type.rank != 4 or term.type.shape[2] != 1:
        return None
    product = reader.strip(term, *VIEWS, *CASTS)
    factors = reader.call(product, "mul.Tensor")
    if factors is None or not isinstance(product, Value) or not _same_elements(product, term):
        return None
    sides = [reader.strip(factors[n], *VIEWS, *CASTS) for n in ("self", "other")]
    slopes = next((s for s in sides if isinstance(s, ParamRef)), None)
    positions = next((graph.producer(s) for s in sides if isinstance(s, Value)), None)
    if slopes is None or positions is None or not isinstance(positions.op, Positions):
        return None
    per_head = slopes.type.dtype == torch.float32 and [d for d in slopes.type.shape if d != 1] == [term.type.shape[1]]
    return slopes if per_head else None


def _same_elements(product: Value, term: Value) -> bool:
    """Whether views between the two only insert or remove axes of size 1."""
    kept = [[d for d in v.type.shape if d != 1] for v in (product, term)]
    return len(kept[0]) == len(kept[1]) and all(same_dim(a, b) for a, b in zip(*kept))
