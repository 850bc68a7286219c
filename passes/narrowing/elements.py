"""Where the elements of a tensor come from when they are only moved.

A tensor made by reshapes, permutations, slices, joins and expansions alone holds elements of the tensors before them. To
know which, the movement is carried out on numbers in place of elements, at sizes that no other axis has: however a model
spells it, the outcome is the same. What follows from it is a reading at those sizes; whoever rewrites by it is checked by
its pass's contract at others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from planish.ir.interpret import Interpreter
from planish.ir.module import Function, Module, Node, Value
from planish.ir.ops import Aten
from planish.ir.types import Dim, TensorType, same_dim
from planish.passes.graph import Graph

MOVEMENTS = frozenset(
    "alias.default clone.default contiguous.default detach.default view.default _unsafe_view.default reshape.default "
    "flatten.using_ints unflatten.int unsqueeze.default squeeze.default squeeze.dim squeeze.dims expand.default "
    "transpose.int permute.default t.default slice.Tensor select.int split.Tensor split_with_sizes.default chunk.default "
    "unbind.int cat.default stack.default repeat.default repeat_interleave.self_int".split()
)
LARGEST = 1 << 24  # elements of one tensor that are worth following

# Sizes for symbolic axes: primes, which are rarely the product of other sizes.
_SIZES = (3, 5, 7, 11, 13)


@dataclass(frozen=True)
class Origin:
    """For each element of a tensor, where it was before.

    Attributes:
        sources: the tensors that its elements come from.
        bindings: the sizes that stand for symbols.
        source, element: int64 of the tensor's shape at these sizes: a number of `sources`, and an index into it, flat.
    """

    sources: tuple[Value, ...]
    bindings: dict[str, int]
    source: torch.Tensor
    element: torch.Tensor

    def size(self, dim: Dim) -> int:
        return TensorType(torch.int64, (dim,)).concrete(self.bindings)[0]


def origin(operand: object, graph: Graph) -> Origin | None:
    """Follow an operand back through movements; None when it is no computed value, or too large to be followed."""
    if not isinstance(operand, Value):
        return None
    nodes, sources = _moved(operand, graph)
    symbols = sorted({s for v in (operand, *sources, *(o for n in nodes for o in n.outputs)) for s in v.type.symbols})
    if len(symbols) > len(_SIZES):
        return None
    bindings = dict(zip(symbols, _SIZES))
    sizes = [math.prod(s.type.concrete(bindings)) for s in sources]
    if max([*sizes, math.prod(operand.type.concrete(bindings))]) > LARGEST:
        return None
    offsets = [sum(sizes[:n]) for n in range(len(sizes))]
    # Floating results would round: as float64, numbers below 2^53 are exact.
    numbers = [
        torch.arange(o, o + n, dtype=torch.float64).reshape(s.type.concrete(bindings))
        for o, n, s in zip(offsets, sizes, sources)
    ]
    function = Function("movement", tuple(sources), tuple(nodes), (operand,), ("moved",))
    moved = Interpreter(Module({"movement": function}, {}), promote=True).run("movement", numbers, bindings=bindings)[0]
    flat = moved.to(torch.int64).contiguous()
    source = torch.bucketize(flat, torch.tensor(offsets), right=True) - 1
    return Origin(tuple(sources), bindings, source, flat - torch.tensor(offsets)[source])


def _moved(operand: Value, graph: Graph) -> tuple[list[Node], list[Value]]:
    """The movements behind a value, in order, and the values before them."""
    nodes: dict[Node, None] = {}
    sources: dict[Value, None] = {}
    stack = [operand]
    while stack:
        value = stack.pop()
        node = graph.producer(value)
        if node is not None and _moves(node):
            nodes[node] = None
            stack += [i for i in node.inputs if isinstance(i, Value)]
        else:
            sources[value] = None
    return sorted(nodes, key=graph.position.__getitem__), list(sources)


def _moves(node: Node) -> bool:
    known = isinstance(node.op, Aten) and node.op.overload in MOVEMENTS
    floating = all(v.type.dtype.is_floating_point for v in node.outputs)
    return known and floating and all(isinstance(i, Value) for i in node.inputs if i is not None)


def row_length(type: TensorType, rows: tuple[Dim, Dim]) -> int | None:
    """F of a tensor that is [batch, length, F] but for axes of size one and a cut of F; None for any other tensor."""
    dims = list(type.shape)
    for expected in rows:
        while dims and dims[0] == 1 and expected != 1:
            dims.pop(0)
        if not dims or not same_dim(dims[0], expected):
            return None
        dims.pop(0)
    return math.prod(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None


@dataclass(frozen=True)
class Columns:
    """The elements of each head [heads, size], the same ones at every position: int64 source and place in its row."""

    sources: tuple[Value, ...]
    source: torch.Tensor
    place: torch.Tensor


def columns(found: Origin, rows: tuple[Dim, Dim]) -> Columns | None:
    """What a tensor [batch, length, heads, size] takes from the same position of tensors [batch, length, ...].

    None when some element comes from another position, or from a tensor that is not laid out so.
    """
    lengths = [row_length(s.type, rows) for s in found.sources]
    if any(length is None for length in lengths):
        return None
    width = torch.tensor([int(length or 0) for length in lengths])[found.source]
    row, place = found.element // width, found.element % width
    batch, length = (found.size(d) for d in rows)
    here = torch.arange(batch * length).reshape(batch, length, 1, 1)
    if not bool((row == here).all()):
        return None
    source, place = found.source[0, 0], place[0, 0]
    alike = bool((found.source == source).all()) and bool((found.element - here * width == place).all())
    return Columns(found.sources, source, place) if alike else None
