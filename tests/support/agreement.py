"""The rule by which a float result of compiled code is held to the interpreter's; needs torch alone."""

from __future__ import annotations

import torch


def float_fault(got: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> str:
    """How a float result breaks the rule, or ""."""
    special = ~torch.isfinite(plain)
    if not torch.equal(got[special].isnan(), plain[special].isnan()):
        return "has NaN in other places"
    infinite = plain.isinf()
    if not torch.equal(got[infinite], plain[infinite]):
        return "has infinities in other places"
    finite = ~special
    if not finite.any():
        return ""
    a, b, c = (t[finite].to(torch.float64) for t in (got, plain, exact))
    allowed = 4 * (b - c).abs().max() + 8 * torch.finfo(plain.dtype).eps * c.abs().max()
    worst = (a - c).abs().max()
    return "" if worst <= allowed else f"differs by {worst:.3g}, allowed are {allowed:.3g}"
