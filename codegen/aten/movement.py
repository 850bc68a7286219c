"""ATen operators that move elements: permutations, slices, joins, padding, gathers.

Pure reshapes are not here: they cost nothing and are views of the same memory (`VIEWS`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr
from planish.codegen.math import hold
from planish.codegen.pointwise.dtypes import convert, literal
from planish.codegen.pointwise.expression import At, Call, Indices, Lazy, Pointwise, Rule
from planish.codegen.pointwise.loops import unravel
from planish.ir import Dim
from planish.ir.types import as_dim

VIEWS = frozenset(
    "view.default reshape.default _unsafe_view.default unsqueeze.default squeeze.default squeeze.dim squeeze.dims "
    "flatten.using_ints unflatten.int view_as.default _reshape_alias.default".split()
)
"""Operators whose result has the same elements in the same order."""

COPIES = frozenset(
    "clone.default contiguous.default alias.default detach.default lift_fresh_copy.default dropout.default".split()
)
"""Operators whose first result is their first operand."""


def _lazy(call: Call, position: int = 0) -> Lazy:
    operand = call.arguments[position]
    assert isinstance(operand, Lazy)
    return operand


def _moved(indices_of: Callable[[Call], Callable[[Indices], Indices]]) -> Pointwise:
    """One operand read at other indices."""

    def rule(call: Call) -> list[At]:
        x, source = _lazy(call), indices_of(call)
        return [lambda indices: x.at(source(indices))]

    return Pointwise(rule, cheap=True)


def _axis(axis: Any, rank: int) -> int:
    return int(axis) % max(rank, 1)


def _inverse_permutation(order: list[int]) -> Callable[[Indices], Indices]:
    def source(indices: Indices) -> Indices:
        found: list[Any] = [None] * len(order)
        for result_axis, axis in enumerate(order):
            found[axis] = indices[result_axis]
        return tuple(found)

    return source


def _permute(call: Call) -> Callable[[Indices], Indices]:
    rank = _lazy(call).type.rank
    return _inverse_permutation([_axis(a, rank) for a in call.argument(1, "dims")])


def _transpose(call: Call) -> Callable[[Indices], Indices]:
    rank = _lazy(call).type.rank
    order = list(range(rank))
    a, b = _axis(call.argument(1, "dim0"), rank), _axis(call.argument(2, "dim1"), rank)
    order[a], order[b] = order[b], order[a]
    return _inverse_permutation(order)


def _reverse(call: Call) -> Callable[[Indices], Indices]:
    return _inverse_permutation(list(reversed(range(_lazy(call).type.rank))))


def _flip(call: Call) -> Callable[[Indices], Indices]:
    x = _lazy(call).type
    axes = {_axis(a, x.rank) for a in call.argument(1, "dims")}

    def source(indices: Indices) -> Indices:
        return tuple(call.size(d) - 1 - i if a in axes else i for a, (d, i) in enumerate(zip(x.shape, indices)))

    return source


def _offset(call: Call, axis: int, start: Dim, step: int = 1) -> Callable[[Indices], Indices]:
    """Index i of an axis comes from start + step * i."""

    def source(indices: Indices) -> Indices:
        at = indices[axis] * step + call.size(start) if step != 1 else indices[axis] + call.size(start)
        return (*indices[:axis], at if start != 0 or step != 1 else indices[axis], *indices[axis + 1 :])

    return source


def _slice(call: Call) -> Callable[[Indices], Indices]:
    x = _lazy(call).type
    axis, step = _axis(call.argument(1, "dim", 0), x.rank), call.argument(4, "step", 1)
    start = call.argument(2, "start") or 0
    size = x.shape[axis]
    if isinstance(start, int) and start < 0:
        start = max(0, size + start) if isinstance(size, int) else as_dim(size + start)
    if isinstance(start, int) and isinstance(size, int):
        start = min(start, size)
    return _offset(call, axis, start, step)


def _select(call: Call) -> Callable[[Indices], Indices]:
    x = _lazy(call).type
    axis, index = _axis(call.argument(1, "dim"), x.rank), call.argument(2, "index")
    if isinstance(index, int) and index < 0:
        index = as_dim(x.shape[axis] + index)

    def source(indices: Indices) -> Indices:
        return (*indices[:axis], call.size(index), *indices[axis:])

    return source


def _expand(call: Call) -> list[At]:
    return [_lazy(call).read]


def _repeat(call: Call) -> Callable[[Indices], Indices]:
    x = _lazy(call).type

    def source(indices: Indices) -> Indices:
        aligned = indices[len(indices) - x.rank :]
        return tuple(tirx.floormod(i, call.size(d)) for d, i in zip(x.shape, aligned))

    return source


def _repeat_interleave(call: Call) -> Callable[[Indices], Indices]:
    x = _lazy(call).type
    times, dim = call.argument(1, "repeats"), call.argument(2, "dim")
    if dim is None:
        # Over all elements in a row.
        return lambda indices: tuple(
            unravel(tirx.floordiv(indices[0], call.size(times)), [call.size(d) for d in x.shape])
        )
    axis = _axis(dim, x.rank)

    def source(indices: Indices) -> Indices:
        return (*indices[:axis], tirx.floordiv(indices[axis], call.size(times)), *indices[axis + 1 :])

    return source


def _roll(call: Call) -> Callable[[Indices], Indices]:
    x = _lazy(call).type
    shifts = {_axis(a, x.rank): s for s, a in zip(call.argument(1, "shifts"), call.argument(2, "dims", []))}

    def source(indices: Indices) -> Indices:
        return tuple(
            tirx.floormod(i - shifts[a], call.size(d)) if a in shifts else i
            for a, (d, i) in enumerate(zip(x.shape, indices))
        )

    return source


def _drop_and_add_axes(call: Call) -> list[At]:
    """squeeze and unsqueeze where they are fused: axes of size 1 come and go."""
    x, result = _lazy(call), call.result
    kept = [a for a, d in enumerate(result.shape) if d != 1]

    def at(indices: Indices) -> Expr:
        rest = iter(indices[a] for a in kept)
        return x.at(tuple(T.int64(0) if d == 1 else next(rest) for d in x.type.shape))

    return [at]


UNIT_AXES = Pointwise(_drop_and_add_axes, cheap=True)
"""A view that only adds or drops axes of size 1, as part of a fused kernel."""


def _split_starts(call: Call) -> list[At]:
    """Consecutive parts of an axis: each result begins where the one before it ends."""
    x = _lazy(call)
    axis = _axis(call.argument(2, "dim", 0), x.type.rank)
    starts: list[Dim] = [0]
    for result in call.results:
        starts.append(as_dim(starts[-1] + result.shape[axis]))

    def part(start: Dim) -> At:
        source = _offset(call, axis, start)
        return lambda indices: x.at(source(indices))

    return [part(start) for start in starts[:-1]]


def _unbind(call: Call) -> list[At]:
    x = _lazy(call)
    axis = _axis(call.argument(1, "dim", 0), x.type.rank)

    def part(number: int) -> At:
        return lambda indices: x.at((*indices[:axis], T.int64(number), *indices[axis:]))

    return [part(n) for n in range(len(call.results))]


def _cat(call: Call) -> list[At]:
    parts = [p for p in call.arguments[0] if not (p.type.rank == 1 and p.type.shape[0] == 0)]
    axis, dtype = _axis(call.argument(1, "dim", 0), call.result.rank), call.result.dtype

    def at(indices: Indices) -> Expr:
        begins: list[Dim] = [0]
        for part in parts[:-1]:
            begins.append(as_dim(begins[-1] + part.type.shape[axis]))

        def taken(number: int) -> Expr:
            local = indices[axis] - call.size(begins[number])
            element = parts[number].at((*indices[:axis], local, *indices[axis + 1 :]))
            return convert(element, parts[number].type.dtype, dtype)

        result = taken(len(parts) - 1)
        for number in reversed(range(len(parts) - 1)):
            inside = indices[axis] < call.size(begins[number + 1])
            # Not a Select: an element past the end of a part must not be read.
            result = T.if_then_else(inside, taken(number), result)
        return result

    return [at]


def _stack(call: Call) -> list[At]:
    parts, axis = call.arguments[0], _axis(call.argument(1, "dim", 0), call.result.rank)

    def at(indices: Indices) -> Expr:
        source = (*indices[:axis], *indices[axis + 1 :])
        values = [convert(part.at(source), part.type.dtype, call.result.dtype) for part in parts]
        result = values[-1]
        for number in reversed(range(len(values) - 1)):
            result = T.if_then_else(T.EQ(indices[axis], T.int64(number)), values[number], result)
        return result

    return [at]


def _pad(call: Call) -> list[At]:
    x, pads = _lazy(call), list(call.argument(1, "pad"))
    value, dtype = call.argument(2, "value", 0) or 0, call.result.dtype
    # Pairs (before, after) from the last axis backwards.
    before = {x.type.rank - 1 - n: pads[2 * n] for n in range(len(pads) // 2)}

    def at(indices: Indices) -> Expr:
        source = tuple(i - call.size(before[a]) if a in before else i for a, i in enumerate(indices))
        inside = [T.And(source[a] >= 0, source[a] < call.size(x.type.shape[a])) for a in before]
        condition = inside[0]
        for more in inside[1:]:
            condition = T.And(condition, more)
        return T.if_then_else(condition, x.at(source), literal(value, dtype))

    return [at]


def _wrapped(index: Expr, size: Expr) -> Expr:
    """A torch index, which may count from the end."""
    wide = hold(T.cast(index, "int64"))
    return hold(T.Select(wide < 0, wide + size, wide))


def _index_select(call: Call) -> list[At]:
    x, index = _lazy(call), _lazy(call, 2)
    axis = _axis(call.argument(1, "dim"), x.type.rank)

    def at(indices: Indices) -> Expr:
        chosen = T.cast(index.read((indices[axis],)), "int64")
        return x.at((*indices[:axis], chosen, *indices[axis + 1 :]))

    return [at]


def _gather(call: Call) -> list[At]:
    x, index = _lazy(call), _lazy(call, 2)
    axis = _axis(call.argument(1, "dim"), x.type.rank)

    def at(indices: Indices) -> Expr:
        chosen = T.cast(index.at(indices), "int64")
        return x.at((*indices[:axis], chosen, *indices[axis + 1 :]))

    return [at]


def _embedding(call: Call) -> list[At]:
    table, ids = _lazy(call), _lazy(call, 1)

    def at(indices: Indices) -> Expr:
        return table.at((T.cast(ids.at(indices[:-1]), "int64"), indices[-1]))

    return [at]


def _index(call: Call) -> list[At]:
    """Advanced indexing by integer tensors, which broadcast; None keeps an axis."""
    x, given = _lazy(call), list(call.arguments[1])
    given += [None] * (x.type.rank - len(given))
    axes = [a for a, g in enumerate(given) if g is not None]
    rank = max(given[a].type.rank for a in axes)
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    first = axes[0] if adjacent else 0

    def at(indices: Indices) -> Expr:
        broadcast, rest = indices[first : first + rank], iter((*indices[:first], *indices[first + rank :]))
        source = [
            _wrapped(given[a].read(broadcast), call.size(d)) if a in axes else next(rest)
            for a, d in enumerate(x.type.shape)
        ]
        return x.at(tuple(source))

    return [at]


def _triangle(keep: Callable[[Expr, Expr, int], Expr]) -> Rule:
    def rule(call: Call) -> list[At]:
        x, diagonal = _lazy(call), call.argument(1, "diagonal", 0)

        def at(indices: Indices) -> Expr:
            kept = keep(indices[-2], indices[-1], diagonal)
            return T.Select(kept, x.at(indices), literal(0, call.result.dtype))

        return [at]

    return rule


MOVEMENT: dict[str, Pointwise] = {
    "permute.default": _moved(_permute),
    "transpose.int": _moved(_transpose),
    "t.default": _moved(_reverse),
    "numpy_T.default": _moved(_reverse),
    "flip.default": _moved(_flip),
    "slice.Tensor": _moved(_slice),
    "slice_copy.Tensor": _moved(_slice),
    "select.int": _moved(_select),
    "narrow.default": _moved(lambda call: _offset(call, _axis(call.arguments[1], call.result.rank), call.arguments[2])),
    "expand.default": Pointwise(_expand, cheap=True, aligned=True),
    "expand_as.default": Pointwise(_expand, cheap=True, aligned=True),
    "broadcast_to.default": Pointwise(_expand, cheap=True, aligned=True),
    "repeat.default": _moved(_repeat),
    "repeat_interleave.self_int": _moved(_repeat_interleave),
    "roll.default": _moved(_roll),
    "split.Tensor": Pointwise(_split_starts, cheap=True),
    "split_with_sizes.default": Pointwise(_split_starts, cheap=True),
    "chunk.default": Pointwise(_split_starts, cheap=True),
    "unbind.int": Pointwise(_unbind, cheap=True),
    "cat.default": Pointwise(_cat, whole=None),
    "stack.default": Pointwise(_stack, whole=None),
    "constant_pad_nd.default": Pointwise(_pad, whole=None),
    "index_select.default": Pointwise(_index_select, whole=(0,)),
    "gather.default": Pointwise(_gather, whole=(0,)),
    "embedding.default": Pointwise(_embedding, whole=(0,)),
    "index.Tensor": Pointwise(_index, whole=(0,)),
    "tril.default": Pointwise(_triangle(lambda row, column, d: column - row <= d), cheap=True),
    "triu.default": Pointwise(_triangle(lambda row, column, d: column - row >= d), cheap=True),
}
