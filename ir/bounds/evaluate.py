"""Evaluating one operation, or a run of nodes, with errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from planish.ir.bounds import arithmetic, decompositions, functions, movement, order, products, reductions  # noqa: F401
from planish.ir.bounds.mode import BoundMode, Error
from planish.ir.module import Node, Operand, Value
from planish.ir.op import Op


@dataclass(frozen=True)
class Bounded:
    """A tensor and a float64 bound on each element's distance to what exact arithmetic gives; None when exact."""

    value: torch.Tensor
    error: Error = None

    def bound(self) -> torch.Tensor:
        """The error as a tensor of the value's shape."""
        zeros = torch.zeros((), dtype=torch.float64)
        return (zeros if self.error is None else self.error).expand(self.value.shape)


def evaluate_bounded(op: Op, operands: Sequence[Bounded | None], coarsest: float = math.inf) -> tuple[Bounded, ...]:
    """Evaluate an operation (without symbols in its attributes) on operands with errors.

    Raises NoBound naming the operator when something inside has no rule.
    """
    mode = BoundMode(coarsest)
    for operand in operands:
        if operand is not None:
            mode.set_error(operand.value, operand.error)
    with torch.no_grad(), mode:
        results = op.evaluate(*(None if o is None else o.value for o in operands))
    return tuple(Bounded(r, mode.error(r)) for r in results)


def run_bounded(
    nodes: Sequence[Node],
    environment: Mapping[Value, Bounded],
    read: Callable[[Operand], Bounded],
    prepare: Callable[[Op], Op],
    coarsest: float = math.inf,
) -> dict[Value, Bounded]:
    """Evaluate nodes in order with errors.

    Args:
        environment: what is known of values that no node here computes.
        read: the content of a parameter or state.
        prepare: turns a node's operation into the one to evaluate: symbols bound, dtypes widened if wished.
    """
    known = dict(environment)
    for node in nodes:
        operands = [None if i is None else (known[i] if isinstance(i, Value) else read(i)) for i in node.inputs]
        known.update(zip(node.outputs, evaluate_bounded(prepare(node.op), operands, coarsest)))
    return known
