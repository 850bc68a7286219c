"""What may be done to the indices of ATen operators that occur in traced models. What is not listed is a barrier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from planish.ir.ops.aten_axes import ELEMENTWISE, padded_axes, transpose_order
from planish.ir.ops.aten_elementwise import AtenIndexing, Types, aligned, pointwise, unary
from planish.ir.spaces.laws import (
    Family,
    Indexing,
    Law,
    affine,
    any_of,
    elementwise,
    fresh,
    linear,
    none,
    operand,
    picked,
    result,
)  # fmt: skip
from planish.ir.spaces.terms import UNIT, Atom, Mismatch, Product, Term, unify, union
from planish.ir.types import TensorType, as_dim, same_dim


def _reshape(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    (x, *_), y = operands, results[0]
    assert x is not None
    ours, theirs = fresh(*x.shape), fresh(*y.shape)
    try:
        unify(Product(ours), Product(theirs))
    except Mismatch:
        return None
    return Indexing((ours,), (theirs,), tuple(linear(atom, operand(0), result()) for atom in ours))


def _permuted(order: Callable[[list[Any], int], list[int]]) -> AtenIndexing:
    def rule(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
        x = operands[0]
        assert x is not None
        atoms = fresh(*x.shape)
        laws = tuple(linear(atom, operand(0), result()) for atom in atoms)
        return Indexing((atoms,), (tuple(atoms[axis] for axis in order(arguments, x.rank)),), laws)

    return rule


def _expand(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
    x, y = operands[0], results[0]
    assert x is not None
    atoms = fresh(*y.shape)
    terms = aligned(x, y, atoms)
    laws = [linear(a, operand(0), result()) if a in terms else affine(a, result()) for a in atoms]
    return Indexing((terms,), (atoms,), tuple(laws))


def _axis(arguments: list[Any], keywords: dict[str, Any], number: int, default: Any, rank: int) -> int:
    given: int = arguments[number] if len(arguments) > number else keywords.get("dim", default)
    return given % rank


def _cat(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
    y = results[0]
    axis = _axis(arguments, keywords, 1, 0, y.rank)
    atoms = fresh(*y.shape)
    parts = [Atom(o.shape[axis]) for o in operands if o is not None]
    laws = [linear(part, operand(n), result()) for n, part in enumerate(parts) if not same_dim(part.size, 0)]
    laws += [linear(a, *map(operand, range(len(parts))), result()) for n, a in enumerate(atoms) if n != axis]
    terms = tuple((*atoms[:axis], part, *atoms[axis + 1 :]) for part in parts)
    return Indexing(terms, ((*atoms[:axis], union(parts), *atoms[axis + 1 :]),), tuple(laws))


def _split(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
    x = operands[0]
    assert x is not None
    axis = _axis(arguments, keywords, 2, 0, x.rank)
    return _cut(x, axis, [r.shape[axis] for r in results], list(range(len(results))))


def _cut(x: TensorType, axis: int, sizes: list[Any], results: list[int | None]) -> Indexing:
    """One axis cut in parts; the part with number r in `results` is result r, one with None is left out."""
    atoms = fresh(*x.shape)
    parts = [Atom(size) for size in sizes]
    kept = [(part, r) for part, r in zip(parts, results) if r is not None]
    laws = [
        replace(linear(part, operand(0)), silent=()) if r is None else linear(part, operand(0), result(r))
        for part, r in zip(parts, results)
        if not same_dim(part.size, 0)
    ]
    laws += [linear(a, operand(0), *(result(r) for _, r in kept)) for n, a in enumerate(atoms) if n != axis]
    terms = ((*atoms[:axis], union(parts), *atoms[axis + 1 :]),)
    return Indexing(terms, tuple((*atoms[:axis], part, *atoms[axis + 1 :]) for part, _ in kept), tuple(laws))


def _slice(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    x, y = operands[0], results[0]
    assert x is not None
    axis = _axis(arguments, keywords, 1, 0, x.rank)
    start, step = (
        arguments[n] if len(arguments) > n else keywords.get(name, default)
        for n, name, default in ((2, "start", 0), (4, "step", 1))
    )
    size, kept = x.shape[axis], y.shape[axis]
    if step != 1 or not all(isinstance(d, int) for d in (start or 0, size, kept)):
        whole = step == 1 and start in (0, None) and same_dim(size, kept)
        return _cut(x, axis, [size], [0]) if whole else None
    first = max(0, start + size) if (start or 0) < 0 else min(start or 0, size)
    cuts = [0, first, first + kept, size]
    return _cut(x, axis, [b - a for a, b in pairwise(cuts)], [None, 0, None])


def _select(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    x = operands[0]
    assert x is not None
    axis, index, size = arguments[1] % x.rank, arguments[2], x.shape[arguments[1] % x.rank]
    if not isinstance(index, int) or not isinstance(size, int):
        return None
    found = _cut(x, axis, [index % size, 1, size - 1 - index % size], [None, 0, None])
    ((*terms,),) = found.results
    return Indexing(found.operands, ((*terms[:axis], *terms[axis + 1 :]),), found.laws)


def _unbind(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
    x = operands[0]
    assert x is not None
    axis = _axis(arguments, keywords, 1, 0, x.rank)
    found = _cut(x, axis, [1] * len(results), list(range(len(results))))
    return Indexing(found.operands, tuple((*r[:axis], *r[axis + 1 :]) for r in found.results), found.laws)


def _pooled(law: Callable[[Atom], Law]) -> AtenIndexing:
    """Windows over the last two axes, whose places are read as such; every other index by itself."""

    def rule(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
        x, y = operands[0], results[0]
        assert x is not None
        *lead, height, width = fresh(*x.shape)
        places = fresh(*y.shape[-2:])
        return Indexing(((*lead, height, width),), ((*lead, *places),), tuple(law(a) for a in lead))

    return rule


def _rows(mixed: Callable[[Atom], Law], others: Callable[[Atom], Law], number: int, keeps: bool) -> AtenIndexing:
    """Operators over some axes: softmax, and reductions, which lose them."""

    def rule(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
        x, y = operands[0], results[0]
        assert x is not None
        given = arguments[number] if len(arguments) > number else keywords.get("dim")
        axes = {
            a % x.rank for a in (range(x.rank) if given in (None, []) else [given] if isinstance(given, int) else given)
        }
        atoms = fresh(*x.shape)
        laws = tuple(mixed(a) if n in axes else others(a) for n, a in enumerate(atoms))
        if keeps:
            return Indexing((atoms,), (atoms,), laws)
        gone: list[Term] = [UNIT] if y.rank == x.rank else []
        kept = [term for n, a in enumerate(atoms) for term in (gone if n in axes else [a])]
        return Indexing((atoms,), (tuple(kept),), laws)

    return rule


def _sum_law(atom: Atom) -> Law:
    """A sum over indices is left alone by matrices that fix the vector of all ones."""
    x = operand(0)
    return Law(atom, Family.CENTRED, {x: 1}, none([x]), none([x]), any_of(x))


def _through(atom: Atom) -> Law:
    return linear(atom, operand(0), result())


def _index(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    """One axis of a tensor read at places that another one holds."""
    x, (axis, *others) = operands[0], [n for n, number in enumerate(arguments[1]) if number is not None]
    index = operands[arguments[1][axis]]
    assert x is not None and index is not None
    if others or not index.dtype.itemsize > 1:
        return None
    atoms, new = fresh(*x.shape), fresh(*index.shape)
    number = operand(arguments[1][axis])
    laws = [picked(a, operand(0), number) if n == axis else _through(a) for n, a in enumerate(atoms)]
    laws += [elementwise(a, [number, result()]) for a in new]
    return Indexing((atoms, new), ((*atoms[:axis], *new, *atoms[axis + 1 :]),), tuple(laws))


def _topk(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
    x, values = operands[0], results[0]
    assert x is not None
    axis = _axis(arguments, keywords, 2, -1, x.rank)
    atoms, (chosen,) = fresh(*x.shape), fresh(values.shape[axis])
    of_result = (*atoms[:axis], chosen, *atoms[axis + 1 :])
    x_, values_, places = operand(0), result(0), result(1)
    scales = ({x_: 1, values_: -1}, {places: 1})
    laws = [
        elementwise(a, [x_, values_, places], scales, none([x_, values_, places]))
        for n, a in enumerate(atoms)
        if n != axis
    ]
    return Indexing((atoms,), (of_result, of_result), tuple(laws))


def _pad(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    x = operands[0]
    assert x is not None
    value = arguments[2] if len(arguments) > 2 else keywords.get("value", 0)
    atoms, padded = fresh(*x.shape), padded_axes(arguments, x.rank)
    if not all(isinstance(pad, int) and pad >= 0 for pair in padded.values() for pad in pair):
        return None
    terms, laws = list[Term](), list[Law]()
    for axis, atom in enumerate(atoms):
        first, last = fresh(*padded.get(axis, (0, 0)))
        terms.append(union((first, atom, last)))
        # Along a padded axis what is put there is alone; along another one it is the same everywhere.
        others_zero = value == 0 or not padded.keys() - {axis}
        laws.append(linear(atom, operand(0), result()) if others_zero else affine(atom, operand(0), result()))
        laws += [replace(affine(end, result()), silent=None) for end in (first, last) if not same_dim(end.size, 0)]
    return Indexing((atoms,), (tuple(terms),), tuple(laws))


def _index_select(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    x, index = operands
    assert x is not None and index is not None
    axis = _axis(arguments, keywords, 1, 0, x.rank)
    if x.rank == 0 or index.rank != 1:
        return None
    atoms, (new,) = fresh(*x.shape), fresh(index.shape[0])
    laws = [picked(atom, operand(0), operand(1)) if n == axis else _through(atom) for n, atom in enumerate(atoms)]
    laws.append(elementwise(new, [operand(1), result()]))
    return Indexing((atoms, (new,)), ((*atoms[:axis], new, *atoms[axis + 1 :]),), tuple(laws))


def _matmul(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    a, b, y = operands[0], operands[1], results[0]
    assert a is not None and b is not None
    if a.rank < 2 or b.rank < 2:
        return None
    *batch, rows, columns = fresh(*y.shape)
    (inner,) = fresh(a.shape[-1])
    sides = []
    for of, last in ((a, (rows, inner)), (b, (inner, columns))):
        lead = y.with_shape(y.shape[:-2])
        sides.append((*aligned(of.with_shape(of.shape[:-2]), lead, tuple(batch)), *last))
    laws = [linear(inner, operand(0), dual=[operand(1)]), linear(rows, operand(0), result())]
    laws.append(linear(columns, operand(1), result()))
    for atom in batch:
        having = [operand(n) for n, side in enumerate(sides) if atom in side]
        if len(having) == 1:
            laws.append(linear(atom, *having, result()))
            continue
        equation = {**dict.fromkeys(having, 1), result(): -1}
        laws.append(elementwise(atom, [*having, result()], (equation,), (equation,), vanishing=any_of(*having)))
    return Indexing(tuple(sides), ((*batch, rows, columns),), tuple(laws))


def _repeat(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing | None:
    x, times = operands[0], arguments[1]
    assert x is not None
    given = arguments[2] if len(arguments) > 2 else keywords.get("dim")
    if given is None or not isinstance(times, int):
        return None
    axis = given % x.rank
    atoms, again = fresh(*x.shape), Atom(as_dim(times))
    laws = [*(_through(a) for a in atoms), affine(again, result())]
    return Indexing((atoms,), ((*atoms[:axis], Product((atoms[axis], again)), *atoms[axis + 1 :]),), tuple(laws))


def _row(atom: Atom) -> Law:
    return elementwise(atom, [operand(0), result()])


def _weighed(atom: Atom) -> Law:
    """Of a softmax: a zero weighs something too."""
    return elementwise(atom, [operand(0), result()], silent=None)


ATEN_INDEXING: dict[str, AtenIndexing] = {
    **{overload: pointwise(overload) for overload in sorted(ELEMENTWISE)},
    **dict.fromkeys((
        "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int unsqueeze.default "
        "squeeze.default squeeze.dim squeeze.dims"
    ).split(), _reshape),
    "expand.default": _expand,
    "transpose.int": _permuted(transpose_order),
    "t.default": _permuted(lambda arguments, rank: list(reversed(range(rank)))),
    "permute.default": _permuted(lambda arguments, rank: [a % rank for a in arguments[1]]),
    "softmax.int": _rows(_weighed, _row, 1, keeps=True),
    "_softmax.default": _rows(_weighed, _row, 1, keeps=True),
    "log_softmax.int": _rows(_weighed, _row, 1, keeps=True),
    "sum.dim_IntList": _rows(_sum_law, _through, 1, keeps=False),
    "mean.dim": _rows(_sum_law, _through, 1, keeps=False),
    "slice.Tensor": _slice,
    "select.int": _select,
    "unbind.int": _unbind,
    "max_pool2d.default": _pooled(unary("relu.default")),
    "avg_pool2d.default": _pooled(_through),
    "adaptive_avg_pool2d.default": _pooled(_through),
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "chunk.default": _split,
    "cat.default": _cat,
    "index_select.default": _index_select,
    "index.Tensor": _index,
    "topk.default": _topk,
    "constant_pad_nd.default": _pad,
    "matmul.default": _matmul,
    "bmm.default": _matmul,
    "mm.default": _matmul,
    "repeat_interleave.self_int": _repeat,
}  # fmt: skip
