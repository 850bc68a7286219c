"""What may be done to the indices of ATen operators that compute element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from planish.ir.spaces.laws import (
    Indexing,
    Law,
    Place,
    affine,
    any_of,
    elementwise,
    equal,
    fresh,
    linear,
    none,
    operand,
    result,
)  # fmt: skip
from planish.ir.spaces.terms import UNIT, Atom, Term
from planish.ir.types import TensorType, same_dim

Types: TypeAlias = "tuple[TensorType | None, ...]"
# arguments and keywords with the numbers of mentions in place of tensors, operand types, result types
AtenIndexing: TypeAlias = Callable[[list[Any], dict[str, Any], Types, tuple[TensorType, ...]], Indexing | None]

LINEAR = frozenset((
    "neg.default clone.default contiguous.default alias.default detach.default to.dtype _to_copy.default mul.Scalar "
    "div.Scalar"
).split())  # fmt: skip
# What reads of its operands only the type: zeros, and the same number everywhere.
ZEROS, CONSTANT = "zeros_like.default", frozenset("ones_like.default full_like.default".split())
EXTREMES = frozenset("maximum.default minimum.default".split())
SUMS = frozenset("add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar".split())
PRODUCTS = {"mul.Tensor": 1, "div.Tensor": -1}
"""The power with which the second operand enters."""
# Functions f with f(2^d x) = 2^n f(x): n, d, and the power of a sign in the result, None where signs do not go through.
POWERS: dict[str, tuple[int, int, int | None]] = {
    "relu.default": (1, 1, None), "leaky_relu.default": (1, 1, None), "abs.default": (1, 1, 0),
    "square.default": (2, 1, 0), "reciprocal.default": (-1, 1, 1), "sqrt.default": (1, 2, None),
    "rsqrt.default": (-1, 2, None),
}  # fmt: skip
ODD = frozenset("tanh.default sin.default erf.default sign.default round.default".split())


def _power(overload: str, arguments: Sequence[Any]) -> tuple[int, int, int | None] | None:
    if overload != "pow.Tensor_Scalar":
        return POWERS.get(overload)
    exponent = arguments[1]
    if not isinstance(exponent, (int, float)) or exponent == 0 or not float(2 * exponent).is_integer():
        return None
    power, root = exponent.as_integer_ratio()
    return power, root, power % 2 if root == 1 else None


def unary(overload: str, arguments: Sequence[Any] = ()) -> Callable[[Atom], Law]:
    x, y = operand(0), result()
    if overload in LINEAR:
        return lambda term: linear(term, x, y)
    of = _power(overload, arguments)
    if of is not None:
        power, root, sign = of
        signs = none([x, y]) if sign is None else ({x: sign, y: -1},)
        vanishing = any_of(x) if power > 0 else ()
        return lambda term: elementwise(term, [x, y], ({x: power, y: -root},), signs, vanishing=vanishing)
    if overload in ODD:
        return lambda term: elementwise(term, [x, y], signs=({x: 1, y: -1},), vanishing=any_of(x))
    return lambda term: elementwise(term, [x, y])


def pointwise(overload: str) -> AtenIndexing:
    def rule(arguments: list[Any], keywords: dict[str, Any], operands: Types, results: Any) -> Indexing:
        shape = results[0].shape
        atoms = fresh(*shape)
        terms = [None if o is None else aligned(o, results[0], atoms) for o in operands]
        tensors = [n for n, o in enumerate(operands) if o is not None]
        laws = []
        rooted = len(tensors) == 1 and _is_zero_at_zero(overload, arguments, keywords, operands[0])
        for atom in atoms:
            having = [operand(n) for n in tensors if atom in (terms[n] or ())]
            law = _law(overload if results[0].dtype.is_floating_point else "", atom, having, len(tensors), arguments)
            laws.append(replace(law, vanishing=any_of(operand(0))) if rooted and having else law)
        return Indexing(tuple(terms), (atoms,), tuple(laws))

    return rule


def _is_zero_at_zero(overload: str, arguments: list[Any], keywords: dict[str, Any], x: TensorType | None) -> bool:
    """Whether a function of one tensor, its first argument, makes zero of zero."""
    packet, _, variant = overload.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), variant)
    if x is None or not x.dtype.is_floating_point or operator._schema.arguments[0].type.kind() != "TensorType":
        return False
    return bool(operator(torch.zeros(1, dtype=x.dtype), *arguments[1:], **keywords) == 0)


def aligned(of: TensorType, whole: TensorType, atoms: tuple[Atom, ...]) -> tuple[Term, ...]:
    """Axes align from the right; one of size 1 is repeated."""
    offset = whole.rank - of.rank
    return tuple(
        atoms[axis + offset] if same_dim(dim, whole.shape[axis + offset]) else UNIT for axis, dim in enumerate(of.shape)
    )


def _law(overload: str, atom: Atom, having: list[Place], tensors: int, arguments: Sequence[Any]) -> Law:
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
        vanishing = any_of(*(having if second == 1 else [p for p in having if p == operand(0)]))
        return elementwise(atom, places, (equation,), (equation,), vanishing=vanishing)
    if tensors == 1:
        return unary(overload, arguments)(atom)
    if overload in EXTREMES and len(having) == 2:
        return elementwise(atom, places, equal(dict.fromkeys(places, 1)))
    return elementwise(atom, places)
