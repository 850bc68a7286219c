"""Operators of ours that stand in a traced program for what we put in place of a library's own code.

They are real torch operators, so that torch.export carries them whole; each computes what the operation of the IR that
it becomes computes, because it calls that operation's own evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planish.ir.op import Op
from planish.ir.ops import Attention, Positions
from planish.ir.types import TensorType


@torch.library.custom_op("planish::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Softmax attention of q [B, S, H, D] over k, v [B, T, Hkv, D]; what is not visible has the bias -inf."""
    op = Attention(scale=scale, causal=False, softcap=softcap)
    return op.evaluate(q, k, v, None, None, None, None, sinks, bias)[0]


@attention.register_fake
def _(q: Any, k: Any, v: Any, bias: Any, sinks: Any, scale: float, softcap: float | None) -> torch.Tensor:
    result: torch.Tensor = q.new_empty((*q.shape[:3], v.shape[3]))
    return result


@torch.library.custom_op("planish::positions", mutates_args=())
def positions(padding: torch.Tensor) -> torch.Tensor:
    """Position of each token i64 [B, S], counting real tokens (padding true) only; other tokens stand at 0."""
    return Positions(*padding.shape).evaluate(None, padding)[0]


@positions.register_fake
def _(padding: Any) -> torch.Tensor:
    return torch.empty_like(padding, dtype=torch.int64)


def _attention_op(arguments: dict[str, Any], result: TensorType) -> tuple[Op, tuple[Any, ...]]:
    op = Attention(scale=arguments["scale"], causal=False, softcap=arguments["softcap"])
    present = {name: arguments[name] for name in ("q", "k", "v", "sinks", "bias")}
    return op, tuple(present.get(name.removesuffix("?")) for name in Attention.operand_names or ())


def _positions_op(arguments: dict[str, Any], result: TensorType) -> tuple[Op, tuple[Any, ...]]:
    return Positions(*result.shape), (None, arguments["padding"])


# Operator -> the operation and operands for its arguments (by name) and the type of its result.
CUSTOM_OPS: dict[str, Callable[[dict[str, Any], TensorType], tuple[Op, tuple[Any, ...]]]] = {
    "planish.attention.default": _attention_op,
    "planish.positions.default": _positions_op,
}
