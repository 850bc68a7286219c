"""Positions computed from a padding mask --> `positions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from planish.ir.module import Operand
from planish.ir.op import Chooser
from planish.ir.ops import Positions
from planish.ir.types import TensorType
from planish.passes.graph import Graph
from planish.passes.patterns import OneOf, call
from planish.passes.rewrite import Match, Replacement, Rule, pattern_rule


def _draw(choose: Chooser) -> Mapping[str, Any]:
    return {"mask": TensorType(torch.bool, (choose.integer(1, 3), choose.integer(2, 6)))}


def _is_mask(match: Match, graph: Graph) -> str | None:
    """Only zeros and ones count real tokens when summed; a boolean input is one by its type."""
    kind = match["mask"].type
    return None if kind.rank == 2 and kind.dtype == torch.bool else f"{kind} need not be zeros and ones"


def _ones(mask: Any) -> Any:
    """A boolean mask as integers, however it is cast."""
    wide = call("_to_copy.default", mask, dtype=torch.int64)
    return OneOf((wide, call("to.dtype", mask, torch.int64), mask))


def _positions(padding_value: int) -> Any:
    def build(to: Replacement, match: Match) -> Operand:
        batch, length = match["mask"].type.shape
        return to.emit(Positions(batch, length, padding_value), None, match["mask"])

    return build


def _zero_at_padding(mask: Any) -> Any:
    """(cumsum(mask) - 1) * mask."""
    ones = _ones(mask)
    counted = call("cumsum.default", ones, OneOf((1, -1)))
    return call("mul.Tensor", call("sub.Tensor", counted, 1), ones)


def _minus_one_at_padding(mask: Any) -> Any:
    """cumsum(mask) * mask - 1."""
    ones = _ones(mask)
    return call("sub.Tensor", call("mul.Tensor", call("cumsum.default", ones, OneOf((1, -1))), ones), 1)


RULES: tuple[Rule, ...] = (
    pattern_rule("positions, 0 at padding", _zero_at_padding, _positions(0), _draw, _is_mask),
    pattern_rule("positions, -1 at padding", _minus_one_at_padding, _positions(-1), _draw, _is_mask),
)
