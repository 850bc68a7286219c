"""Dynamically quantised activations under training: codes that carry gradients."""

from __future__ import annotations

from typing import Any

import torch

from planish.ir.errors import InputError
from planish.ir.module import Function
from planish.ir.ops import QuantizeActivation, QuantizedLinear


def float_codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `QuantizeActivation` makes of the rows of x, the codes as floats of x's dtype.

    The gradient of codes * scale passes straight to x, and the scale has none. A row of zeros passes none on.
    """
    codes, scale = _Codes.apply(x)  # type: ignore[no-untyped-call]
    return codes, scale


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = QuantizeActivation().evaluate(x)
        ctx.save_for_backward(scale)
        ctx.mark_non_differentiable(scale)
        return codes.to(x.dtype), scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (scale,) = ctx.saved_tensors
        return torch.where(scale == 0, 0, gradients[0] / scale)


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
