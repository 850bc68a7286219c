"""What may be done to the indices of ATen operators that occur in traced models. What is not listed is a barrier."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

from planish.ir.ops.aten_axes import ELEMENTWISE, transpose_order
from planish.ir.spaces.laws import (
    Family,
    Indexing,
    Law,
    Place,
    affine,
    elementwise,
    fresh,
    linear,
    none,
    operand,
    result,
)  # fmt: skip
from planish.ir.spaces.terms import UNIT, Atom, Mismatch, Product, Term, unify, union
from planish.ir.types import TensorType, as_dim, same_dim

Types: TypeAlias = "tuple[TensorType | None, ...]"
# arguments and keywords with operand numbers in place of tensors, operand types, result types
AtenIndexing: TypeAlias = Callable[[list[Any], dict[str, Any], Types, tuple[TensorType, ...]], Indexing | None]

LINEAR = frozenset((
    "neg.default clone.default contiguous.default alias.default detach.default to.dtype _to_copy.default mul.Scalar "
    "div.Scalar"
).split())  # fmt: skip
# What reads of its operands only the type: zeros, and the same number everywhere.
ZEROS, CONSTANT = "zeros_like.default", frozenset("ones_like.default full_like.default".split())
SUMS = frozenset("add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar".split())
PRODUCTS = {"mul.Tensor": 1, "div.Tensor": -1}
"""The power with which the second operand enters."""
# Functions f with f(2 x) = 2^n f(x): n, and the power of a sign in the result, None where signs do not go through.
POWERS: dict[str, tuple[int, int | None]] = {
    "relu.default": (1, None), "leaky_relu.default": (1, None), "abs.default": (1, 0), "square.default": (2, 0),
    "reciprocal.default": (-1, 1),
}  # fmt: skip
ODD = frozenset("tanh.default sin.default erf.default sign.default round.default".split())


def _unary(overload: str) -> Callable[[Atom], Law]:
    x, y = operand(0), result()
    if overload in LINEAR:
        return lambda term: linear(term, x, y)
    if overload in POWERS:
        power, sign = POWERS[overload]
        signs = none([x, y]) if sign is None else ({x: sign, y: -1},)
        return lambda term: elementwise(term, [x, y], ({x: power, y: -1},), signs)
    if overload in ODD:
        return lambda term: elementwise(term, [x, y], signs=({x: 1, y: -1},))
    return lambda term: elementwise(term, [x, y])


def _pointwise(overload: str) -> AtenIndexing:
    def rule(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
        shape = results[0].shape
        atoms = fresh(*shape)
        terms = [None if o is None else _aligned(o, results[0], atoms) for o in operands]
        tensors = [n for n, o in enumerate(operands) if o is not None]
        laws = []
        for atom in atoms:
            having = [operand(n) for n in tensors if atom in (terms[n] or ())]
            laws.append(_law(overload if results[0].dtype.is_floating_point else "", atom, having, len(tensors)))
        return Indexing(tuple(terms), (atoms,), tuple(laws))

    return rule


def _aligned(of: TensorType, whole: TensorType, atoms: tuple[Atom, ...]) -> tuple[Term, ...]:
    """Axes align from the right; one of size 1 is repeated."""
    offset = whole.rank - of.rank
    return tuple(
        atoms[axis + offset] if same_dim(dim, whole.shape[axis + offset]) else UNIT for axis, dim in enumerate(of.shape)
    )


def _law(overload: str, atom: Atom, having: list[Place], tensors: int) -> Law:
    places = [*having, result()]
    if not having or overload in CONSTANT:
        return affine(atom, *places)
    if overload in (ZEROS, "type_as.default"):
        return linear(atom, operand(0), result())
    if overload in SUMS:
        # What is the same at every index, a number or a broadcast tensor, is left alone by matrices that fix all ones.
        return linear(atom, *places) if len(having) == 2 else affine(atom, *places)
    if overload in PRODUCTS and len(having) == 1 and (PRODUCTS[overload] == 1 or having[0] == operand(0)):
        return linear(atom, *places)
    if overload in PRODUCTS:
        second = PRODUCTS[overload]
        equation = {p: 1 if p == operand(0) else second for p in having} | {result(): -1}
        return elementwise(atom, places, (equation,), (equation,))
    if tensors == 1:
        return _unary(overload)(atom)
    return elementwise(atom, places)


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
    terms = _aligned(x, y, atoms)
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
        linear(part, operand(0), *([] if r is None else [result(r)]))
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
    start, step = (arguments[n] if len(arguments) > n else default for n, default in ((2, 0), (4, 1)))
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
    return Law(atom, Family.CENTRED, {operand(0): 1}, none([operand(0)]), none([operand(0)]))


def _through(atom: Atom) -> Law:
    return linear(atom, operand(0), result())


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
        sides.append((*_aligned(of.with_shape(of.shape[:-2]), lead, tuple(batch)), *last))
    laws = [linear(inner, operand(0), dual=[operand(1)]), linear(rows, operand(0), result())]
    laws.append(linear(columns, operand(1), result()))
    for atom in batch:
        having = [operand(n) for n, side in enumerate(sides) if atom in side]
        equation = {**dict.fromkeys(having, 1), result(): -1}
        laws.append(elementwise(atom, [*having, result()], (equation,), (equation,)))
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


def _odd_row(atom: Atom) -> Law:
    return elementwise(atom, [operand(0), result()])


ATEN_INDEXING: dict[str, AtenIndexing] = {
    **{overload: _pointwise(overload) for overload in sorted(ELEMENTWISE)},
    **dict.fromkeys((
        "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int unsqueeze.default "
        "squeeze.default squeeze.dim squeeze.dims"
    ).split(), _reshape),
    "expand.default": _expand,
    "transpose.int": _permuted(transpose_order),
    "t.default": _permuted(lambda arguments, rank: list(reversed(range(rank)))),
    "permute.default": _permuted(lambda arguments, rank: [a % rank for a in arguments[1]]),
    "softmax.int": _rows(_odd_row, _odd_row, 1, keeps=True),
    "_softmax.default": _rows(_odd_row, _odd_row, 1, keeps=True),
    "log_softmax.int": _rows(_odd_row, _odd_row, 1, keeps=True),
    "sum.dim_IntList": _rows(_sum_law, _through, 1, keeps=False),
    "mean.dim": _rows(_sum_law, _through, 1, keeps=False),
    "slice.Tensor": _slice,
    "select.int": _select,
    "unbind.int": _unbind,
    "max_pool2d.default": _pooled(_unary("relu.default")),
    "avg_pool2d.default": _pooled(_through),
    "adaptive_avg_pool2d.default": _pooled(_through),
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "chunk.default": _split,
    "cat.default": _cat,
    "matmul.default": _matmul,
    "bmm.default": _matmul,
    "mm.default": _matmul,
    "repeat_interleave.self_int": _repeat,
}  # fmt: skip
