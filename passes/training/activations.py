"""Dynamically quantised activations under training: codes that carry gradients."""

from __future__ import annotations

from typing import Any

import torch

from planish.ir.errors import InputError
from planish.ir.module import Function
from planish.ir.ops import QuantizeActivation, QuantizedLinear


def float_codes(op: QuantizeActivation, x: torch.Tensor, scaled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """What the operation makes of the rows of x, the codes as floats of x's dtype.

    The gradient of codes * scale passes straight to x. The scale has none of its own, unless `scaled`: then it is as
    `straight` has it for the scales of weights. A row of zeros passes none on.
    """
    codes, scale = _Codes.apply(x, op, scaled)  # type: ignore[no-untyped-call]
    return codes, scale


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, op: QuantizeActivation, scaled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = op.evaluate(x)
        ctx.largest = op.largest if scaled else None
        ctx.save_for_backward(x, scale) if scaled else ctx.save_for_backward(scale)
        if not scaled:
            ctx.mark_non_differentiable(scale)
        return codes.to(x.dtype), scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        by_codes, by_scale = gradients
        *kept, scale = ctx.saved_tensors
        straight = torch.where(scale == 0, 0, by_codes / scale)
        if ctx.largest is None:
            return straight, None, None
        (x,) = kept
        # By codes = x / scale + error: what the scale is given, less what it takes from the codes.
        of_scale = by_scale - torch.where(scale == 0, 0, (straight * x).sum(-1, keepdim=True) / scale)
        place = x.abs().argmax(-1, keepdim=True)
        at_peak = torch.where(scale == 0, 0, of_scale / ctx.largest * x.gather(-1, place).sign())
        return straight.scatter_add(-1, place, at_peak), None, None


def check_readers(function: Function) -> None:
    """Raises InputError when something else than a quantised linear map reads codes: it would not know them as floats."""
    for codes in (node.outputs[0] for node in function.nodes if isinstance(node.op, QuantizeActivation)):
        others = [n for n in function.users().get(codes, ()) if not isinstance(n.op, QuantizedLinear)]
        if others or codes in function.results:
            what = others[0].op.name if others else "a result"
            raise InputError(
                f"function {function.name!r} cannot be trained: {what} reads the codes of quantised activations, and only "
                f"quantized_linear carries their gradient; train before the pass that made it so"
            )
