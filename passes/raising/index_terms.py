"""Tensors as functions of their indices.

Masks, positions and relative distances are computed from index ranges by elementwise arithmetic and views. Such a tensor
is a closed term over the indices of its own axes, which this module finds by walking the data flow backwards: a mask
`arange(S)[None, :] <= arange(S)[:, None]` becomes the sympy relation `a1 <= a0`. What cannot be written so has no term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from planish.ir.axes import reshape_ties
from planish.ir.module import Function, Module, Node, ParamRef, Value
from planish.ir.ops import Aten
from planish.ir.types import TensorType

Term: TypeAlias = sympy.Basic

INPUT = sympy.Function("input")
"""`input(name, i, j, ...)`: the element of a function input."""


def axis(number: int) -> sympy.Symbol:
    """The index along an axis of the tensor that a term describes."""
    return sympy.Symbol(f"a{number}", integer=True, nonnegative=True)


class IndexTerms:
    """Terms of the values of one function. `inputs` names the inputs whose elements may occur as truth values."""

    def __init__(self, module: Module, function: Function, inputs: frozenset[str]) -> None:
        self._module = module
        self._producers = function.producers()
        self._inputs = {v: v.name for v in function.inputs if v.name in inputs}
        self._known: dict[Value, Term | None] = {}

    def of(self, operand: object) -> Term | None:
        """The term of a value over its own axes, or None."""
        if isinstance(operand, ParamRef):
            return self._constant(operand)
        if not isinstance(operand, Value):
            return None
        if operand not in self._known:
            self._known[operand] = None
            self._known[operand] = self._compute(operand)
        return self._known[operand]

    def _constant(self, ref: ParamRef) -> Term | None:
        """A parameter of one element is that number."""
        if any(d != 1 for d in ref.type.shape):
            return None
        return number(self._module.params[ref.name].value().item())

    def _compute(self, value: Value) -> Term | None:
        if value in self._inputs:
            element = INPUT(sympy.Symbol(self._inputs[value]), *(axis(n) for n in range(value.type.rank)))
            return truth(element) if value.type.dtype == torch.bool else element
        node = self._producers.get(value)
        if node is None or not isinstance(node.op, Aten) or len(node.outputs) != 1:
            return None
        rule = _RULES.get(node.op.overload)
        return None if rule is None else rule(self, node)

    def arguments(self, node: Node) -> tuple[list[Any], dict[str, Any]]:
        """An ATen call's arguments with its operands (values, parameters) in place."""
        assert isinstance(node.op, Aten)
        return node.op.call_arguments(node.inputs)

    def broadcast(self, operand: object, result: TensorType) -> Term | None:
        """The term of an argument read at the indices of a result it broadcasts to; numbers stand for themselves."""
        if isinstance(operand, (bool, int, float)):
            return number(operand)
        if isinstance(operand, sympy.Expr):
            return operand
        term = self.of(operand)
        kind = getattr(operand, "type", None)
        if term is None or not isinstance(kind, TensorType):
            return None
        offset = result.rank - kind.rank
        return remap(term, {n: 0 if kind.shape[n] == 1 else axis(n + offset) for n in range(kind.rank)})


def number(value: bool | int | float) -> Term:
    """A constant; the lowest finite number of a dtype stands for minus infinity, as attention masks use it."""
    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    if isinstance(value, int):
        return sympy.Integer(value)
    if value == -torch.inf or any(
        value == torch.finfo(d).min for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    ):
        return -sympy.oo
    return sympy.Integer(int(value)) if value == int(value) else sympy.Float(value)


def remap(term: Term, indices: Mapping[int, Any]) -> Term:
    """The term with its own axes replaced."""
    return term.subs({axis(n): index for n, index in indices.items()}, simultaneous=True)


def is_truth(term: Term) -> bool:
    """Whether a term is a truth value. (Symbols count as such to sympy; here they are indices.)"""
    return isinstance(
        term, (sympy.logic.boolalg.BooleanFunction, sympy.logic.boolalg.BooleanAtom, sympy.core.relational.Relational)
    )


def truth(term: Term) -> Term:
    """The term as a truth value: nonzero is true."""
    if is_truth(term):
        return term
    if isinstance(term, sympy.Piecewise):
        return sympy.Or(*(sympy.And(condition, truth(value)) for value, condition in exclusive(term)))
    return sympy.Ne(term, 0)


def exclusive(term: Term, given: Term = sympy.true) -> list[tuple[Term, Term]]:
    """The leaves of a choice, nested ones too, with conditions that exclude each other; impossible leaves are left out."""
    if not isinstance(term, sympy.Piecewise):
        return [] if given == sympy.false else [(term, given)]
    leaves, earlier = [], given
    for value, condition in term.args:
        leaves += exclusive(value, sympy.simplify_logic(sympy.And(earlier, condition), deep=False))
        earlier = sympy.And(earlier, sympy.Not(condition))
    return leaves


def arithmetic(term: Term) -> Term:
    """The term as a number: true is 1."""
    if is_truth(term):
        return choose(term, sympy.Integer(1), sympy.Integer(0))
    return term


def choose(condition: Term, yes: Term, no: Term) -> Term:
    """yes where the condition holds, else no; truth values stay truth values."""
    if condition == sympy.true:
        return yes
    if condition == sympy.false:
        return no
    if is_truth(yes) and is_truth(no):
        return sympy.Or(sympy.And(condition, yes), sympy.And(sympy.Not(condition), no))
    return sympy.Piecewise((arithmetic(yes), condition), (arithmetic(no), True))


_Rule: TypeAlias = Callable[[IndexTerms, Node], "Term | None"]


def _pointwise(compute: Callable[..., Term | None]) -> _Rule:
    def rule(terms: IndexTerms, node: Node) -> Term | None:
        arguments, keywords = terms.arguments(node)
        if "alpha" in keywords or "rounding_mode" in keywords:
            return None
        found = [terms.broadcast(a, node.output.type) for a in arguments]
        return None if any(f is None for f in found) else compute(*found)

    return rule


def _numbers(compute: Callable[..., Term]) -> _Rule:
    def on_numbers(*found: Term) -> Term | None:
        values = [arithmetic(f) for f in found]
        return None if any(isinstance(v, sympy.Piecewise) for v in values) else compute(*values)

    return _pointwise(on_numbers)


def _truths(compute: Callable[..., Term]) -> _Rule:
    return _pointwise(lambda *found: compute(*(truth(f) for f in found)))


def _arange(terms: IndexTerms, node: Node) -> Term:
    arguments, _ = terms.arguments(node)
    start, step = (arguments[0] if len(arguments) > 1 else 0), (arguments[2] if len(arguments) > 2 else 1)
    return sympy.sympify(start) + sympy.sympify(step) * axis(0)


def _full(terms: IndexTerms, node: Node) -> Term:
    assert isinstance(node.op, Aten)
    filled = {"zeros.default": 0, "ones.default": 1, "new_zeros.default": 0, "new_ones.default": 1}
    value = filled[node.op.overload] if node.op.overload in filled else node.op.arguments[1]
    return number(bool(value) if node.output.type.dtype == torch.bool else value)


def _reshape(terms: IndexTerms, node: Node) -> Term | None:
    source, result = node.inputs[0], node.output.type
    term = terms.of(source)
    assert source is not None
    if term is None:
        return None
    ties = {
        t.axis: axis(t.result_axis) for t in reshape_ties(source.type, result).ties if result.shape[t.result_axis] != 1
    }
    ones: dict[int, Any] = {n: 0 for n, d in enumerate(source.type.shape) if d == 1}
    indices = {**ties, **ones}
    return remap(term, indices) if len(indices) == source.type.rank else None


def _expand(terms: IndexTerms, node: Node) -> Term | None:
    return terms.broadcast(node.inputs[0], node.output.type)


def _transpose(terms: IndexTerms, node: Node) -> Term | None:
    arguments, _ = terms.arguments(node)
    rank = node.output.type.rank
    a, b = arguments[1] % rank, arguments[2] % rank
    term = terms.of(node.inputs[0])
    return None if term is None else remap(term, {a: axis(b), b: axis(a)})


def _slice(terms: IndexTerms, node: Node) -> Term | None:
    arguments, _ = terms.arguments(node)
    dim, start, step = (arguments[n] if len(arguments) > n else d for n, d in ((1, 0), (2, 0), (4, 1)))
    term = terms.of(node.inputs[0])
    if term is None or (isinstance(start, int) and start < 0):
        return None
    return remap(term, {dim % node.output.type.rank: axis(dim % node.output.type.rank) * step + (start or 0)})


def _index(terms: IndexTerms, node: Node) -> Term | None:
    """x[i, j, ...] with an index tensor for every axis of x."""
    (source, indices), _ = terms.arguments(node)
    term = terms.of(source)
    found = [None if i is None else terms.broadcast(i, node.output.type) for i in indices]
    if term is None or len(found) != source.type.rank or any(f is None for f in found):
        return None
    return remap(term, dict(enumerate(found)))


def _cast(terms: IndexTerms, node: Node) -> Term | None:
    term = terms.of(node.inputs[0])
    if term is None:
        return None
    return truth(term) if node.output.type.dtype == torch.bool else arithmetic(term)


def _masked_fill(x: Term, mask: Term, value: Term) -> Term:
    return choose(truth(mask), value, x)


def _one_minus(x: Term, one: Term) -> Term | None:
    """c - x, also for a choice between constants (`1 - mask`)."""
    return _over_choice(arithmetic(x), lambda v: one - v)


def _scaled(x: Term, factor: Term) -> Term | None:
    return _over_choice(arithmetic(x), lambda v: sympy.Integer(0) if v == 0 else v * arithmetic(factor))


def _over_choice(term: Term, compute: Callable[[Term], Term]) -> Term | None:
    if isinstance(term, sympy.Piecewise):
        return sympy.Piecewise(*((compute(value), condition) for value, condition in term.args))
    return compute(term)


def _product(a: Term, b: Term) -> Term | None:
    if isinstance(arithmetic(b), sympy.Piecewise):
        a, b = b, a
    return None if isinstance(arithmetic(b), sympy.Piecewise) else _scaled(a, b)


_RULES: dict[str, _Rule] = {
    "arange.default": _arange,
    "arange.start": _arange,
    "arange.start_step": _arange,
    "full.default": _full,
    "zeros.default": _full,
    "ones.default": _full,
    "new_zeros.default": _full,
    "new_ones.default": _full,
    "scalar_tensor.default": _pointwise(lambda x: x),
    "view.default": _reshape,
    "reshape.default": _reshape,
    "unsqueeze.default": _reshape,
    "squeeze.dim": _reshape,
    "expand.default": _expand,
    "transpose.int": _transpose,
    "slice.Tensor": _slice,
    "index.Tensor": _index,
    "to.dtype": _cast,
    "_to_copy.default": _cast,
    "add.Tensor": _numbers(lambda a, b: a + b),
    "add.Scalar": _numbers(lambda a, b: a + b),
    "sub.Tensor": _numbers(lambda a, b: a - b),
    "sub.Scalar": _numbers(lambda a, b: a - b),
    "rsub.Scalar": _pointwise(_one_minus),
    "mul.Tensor": _pointwise(_product),
    "mul.Scalar": _pointwise(_product),
    "floor_divide.default": _numbers(FloorDiv),
    "le.Tensor": _numbers(sympy.Le),
    "lt.Tensor": _numbers(sympy.Lt),
    "ge.Tensor": _numbers(sympy.Ge),
    "gt.Tensor": _numbers(sympy.Gt),
    "eq.Tensor": _numbers(sympy.Eq),
    "le.Scalar": _numbers(sympy.Le),
    "lt.Scalar": _numbers(sympy.Lt),
    "ge.Scalar": _numbers(sympy.Ge),
    "gt.Scalar": _numbers(sympy.Gt),
    "eq.Scalar": _numbers(sympy.Eq),
    "logical_and.default": _truths(sympy.And),
    "bitwise_and.Tensor": _truths(sympy.And),
    "__and__.Tensor": _truths(sympy.And),
    "logical_or.default": _truths(sympy.Or),
    "bitwise_or.Tensor": _truths(sympy.Or),
    "logical_not.default": _truths(sympy.Not),
    "bitwise_not.default": _truths(sympy.Not),
    "where.self": _pointwise(lambda c, a, b: choose(truth(c), a, b)),
    "where.ScalarSelf": _pointwise(lambda c, a, b: choose(truth(c), a, b)),
    "where.ScalarOther": _pointwise(lambda c, a, b: choose(truth(c), a, b)),
    "where.Scalar": _pointwise(lambda c, a, b: choose(truth(c), a, b)),
    "masked_fill.Scalar": _pointwise(_masked_fill),
    "masked_fill.Tensor": _pointwise(_masked_fill),
    "detach.default": _pointwise(lambda x: x),
    "clone.default": _pointwise(lambda x: x),
    "lift_fresh_copy.default": _pointwise(lambda x: x),
    "alias.default": _pointwise(lambda x: x),
}
