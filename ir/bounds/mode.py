"""The watcher: for every ATen call, the value as torch computes it and a bound from the rule of the operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from planish.ir.bounds.rounding import INTEGERS, UNDERFLOW, accumulation_dtype, unit_roundoff
from planish.ir.errors import PlanishError

Error: TypeAlias = "torch.Tensor | None"
"""A float64 bound for each element, None where the value is exact."""


class NoBound(PlanishError):
    """No bound can be given: an operator without a rule, or a decision that rounding could turn."""


@dataclass(frozen=True)
class Call:
    """One ATen call as a rule sees it: arguments by schema name, the computed value, and the errors of its operands."""

    mode: BoundMode
    function: torch._ops.OpOverload
    arguments: dict[str, Any]
    value: Any

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def error(self, operand: Any) -> torch.Tensor:
        """The error of a tensor; for a number, what storing it in the result's dtype costs."""
        if isinstance(operand, torch.Tensor):
            found = self.mode.error(operand)
            found = torch.zeros((), dtype=torch.float64) if found is None else found
            return found + self._conversion(operand)
        dtype = accumulation_dtype(self.dtype)
        if not isinstance(operand, (bool, int, float)) or not dtype.is_floating_point or not math.isfinite(operand):
            return torch.zeros((), dtype=torch.float64)
        return torch.tensor(abs(float(torch.tensor(operand, dtype=dtype)) - operand), dtype=torch.float64)

    def _conversion(self, operand: torch.Tensor) -> torch.Tensor | float:
        """What converting an operand to the result's dtype first costs."""
        if operand.dtype == self.dtype or not self.dtype.is_floating_point:
            return 0.0
        magnitude = operand.to(torch.float64).abs()
        if not operand.dtype.is_floating_point:
            return torch.where(magnitude > INTEGERS[self.dtype], self.unit * magnitude, 0.0)
        return self.unit * magnitude if unit_roundoff(operand.dtype) < unit_roundoff(self.dtype) else 0.0

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.result.dtype
        return found

    @property
    def result(self) -> torch.Tensor:
        """The value, or the first of several."""
        found: torch.Tensor = self.value if isinstance(self.value, torch.Tensor) else self.value[0]
        return found

    @property
    def unit(self) -> float:
        """Unit roundoff of the result's dtype."""
        return self.mode.unit(self.dtype)

    @property
    def accumulation(self) -> float:
        """Unit roundoff of sums inside the operator."""
        return self.mode.unit(accumulation_dtype(self.dtype))

    @property
    def output_rounding(self) -> torch.Tensor:
        """What rounding a sum to the result's dtype costs, zero where it was carried in that dtype."""
        return self.rounding() if accumulation_dtype(self.dtype) != self.dtype else torch.zeros((), dtype=torch.float64)

    def rounding(self, ulps: float = 1.0) -> torch.Tensor:
        """The error of a result that is right to `ulps` unit roundoffs."""
        if not self.dtype.is_floating_point:
            return torch.zeros((), dtype=torch.float64)
        # A half-width result is computed in float32 and then rounded.
        unit = self.unit + (ulps * self.accumulation if self.accumulation != self.unit else (ulps - 1) * self.unit)
        magnitude = wide(self.result).abs()
        return torch.where(torch.isfinite(magnitude), unit * magnitude, 0.0) + UNDERFLOW[self.dtype]


Rule: TypeAlias = Callable[[Call], Any]
RULES: dict[str, Rule] = {}
DECOMPOSITIONS: dict[str, Callable[..., Any]] = {}


def rule(*overloads: str) -> Callable[[Rule], Rule]:
    """Register the error rule of some ATen overloads. It returns the error of the result, or one for each result."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(overloads, function))
        return function

    return register


def decomposition(*overloads: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that computes the same with operators that have rules."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        DECOMPOSITIONS.update(dict.fromkeys(overloads, function))
        return function

    return register


def wide(x: Any) -> torch.Tensor:
    """A tensor or number in float64."""
    return x.to(torch.float64) if isinstance(x, torch.Tensor) else torch.tensor(float(x), dtype=torch.float64)


def name_of(function: torch._ops.OpOverload) -> str:
    return f"{function._schema.name.removeprefix('aten::')}.{function._overloadname}"


class BoundMode(TorchDispatchMode):
    """Watches ATen calls and keeps an error for each tensor they make.

    Args:
        coarsest: no unit roundoff is taken larger than this, whatever a tensor's dtype; for asking whether a program is
            as accurate as one in a finer dtype would be.
    """

    def __init__(self, coarsest: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coarsest = coarsest
        # The tensors are held, so that an id names one of them as long as the table lives.
        self._table: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def unit(self, dtype: torch.dtype) -> float:
        return min(unit_roundoff(dtype), self.coarsest)

    def error(self, tensor: torch.Tensor) -> Error:
        """The error of a tensor, None when it is exact."""
        found = self._table.get(id(tensor))
        return None if found is None else found[1]

    def set_error(self, tensor: torch.Tensor, error: Error) -> None:
        if error is not None:
            self._table[id(tensor)] = (tensor, error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function._schema.is_mutable:
            return self._in_place(function, args, kwargs)
        name = name_of(function)
        if name in DECOMPOSITIONS:
            with self:
                return DECOMPOSITIONS[name](*args, **kwargs)
        exact = all(self.error(t) is None for t in _tensors((args, kwargs)))
        if name not in RULES:
            return self._without_rule(function, name, args, kwargs, exact)
        value = function(*args, **kwargs)
        if exact and not any(t.dtype.is_floating_point for t in _tensors(value)):
            return value
        errors = RULES[name](Call(self, function, _named(function, args, kwargs), value))
        self._store(value, errors, args, kwargs)
        return value

    def _without_rule(self, function: Any, name: str, args: Any, kwargs: Any, exact: bool) -> Any:
        """Integers from exact operands are exact; otherwise torch's own decompositions are asked."""
        with self:
            # A composite operator called from a decomposition arrives here whole.
            composed = function.decompose(*args, **kwargs)
        if composed is not NotImplemented:
            return composed
        known = torch._decomp.decomposition_table.get(function)
        if exact and torch.Tag.nondeterministic_seeded not in function.tags:
            value = function(*args, **kwargs)
            if all(not t.dtype.is_floating_point for t in _tensors(value)):
                return value
        refusal = f"no error rule is known for the operator aten.{name}"
        if known is None:
            raise NoBound(refusal)
        try:
            with self:
                return known(*args, **kwargs)
        except NoBound as inner:
            raise NoBound(refusal) from inner

    def _store(self, value: Any, errors: Any, args: Any, kwargs: Any) -> None:
        values = list(value) if isinstance(value, (tuple, list)) else [value]
        found = list(errors) if isinstance(value, (tuple, list)) else [errors]
        infinite = None
        for tensor, error in zip(values, found):
            if error is None or not isinstance(tensor, torch.Tensor):
                continue
            error = error.expand(tensor.shape)
            if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
                if infinite is None:
                    infinite = any(not _finite(x) for x in tree_leaves((args, kwargs)))
                # An infinite operand (a mask of -inf) gives infinities that are no error; without one it is an overflow.
                there = torch.where(torch.isinf(error), math.inf, 0.0) if infinite else math.inf
                error = torch.where(torch.isfinite(tensor), error, there)
            self.set_error(tensor, torch.nan_to_num(error, nan=math.inf, posinf=math.inf))

    def _in_place(self, function: Any, args: Any, kwargs: Any) -> Any:
        """An in-place call is the functional one, copied over its first operand."""
        base = function._schema.name.removeprefix("aten::").rstrip("_")
        packet = getattr(torch.ops.aten, base, None)
        target = args[0] if args else None
        if not function._schema.name.endswith("_") or packet is None or not isinstance(target, torch.Tensor):
            raise NoBound(f"no error rule is known for the operator aten.{name_of(function)}")
        functional = getattr(packet, function._overloadname)
        if torch.Tag.inplace_view in function.tags:
            moved = self.error(target)
            self.set_error(target, None if moved is None else functional(moved, *args[1:], **kwargs))
            return function(*args, **kwargs)
        with self:
            made = functional(*args, **kwargs)
        error, before = self.error(made), self.error(target)
        target.copy_(made)
        if before is not None:
            before.copy_(torch.zeros(()) if error is None else error)
        elif error is not None:
            if target._is_view():
                raise NoBound(f"aten.{name_of(function)} writes an inexact value into a view of an exact tensor")
            self.set_error(target, error.clone())
        return target


def _tensors(tree: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _finite(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        return not leaf.dtype.is_floating_point or bool(torch.isfinite(leaf).all())
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _named(function: torch._ops.OpOverload, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by schema name, defaults filled in."""
    schema = function._schema.arguments
    given = {argument.name: argument.default_value for argument in schema}
    given.update({argument.name: value for argument, value in zip(schema, args)})
    return {**given, **kwargs}


def errors_in_place_of_values(call: Call) -> list[Any]:
    """The call's arguments with each tensor that can carry an error replaced by its error."""

    def swap(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        error = call.mode.error(leaf)
        if error is not None:
            return error
        return torch.zeros(leaf.shape, dtype=torch.float64) if leaf.dtype.is_floating_point else leaf

    swapped: list[Any] = tree_map(swap, list(call.arguments.values()))
    return swapped
