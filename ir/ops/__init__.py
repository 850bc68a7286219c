"""The registry of operations: one line each. Operations outside the package register as `planish.ops` entry points."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from planish.ir.errors import IRError
from planish.ir.op import Op
from planish.ir.ops.aten import Aten, Slot, aten
from planish.ir.ops.attention import Attention, CacheAppend, LastToken
from planish.ir.ops.conv import Conv2d
from planish.ir.ops.embedding import Embedding
from planish.ir.ops.gated import GatedActivation
from planish.ir.ops.hadamard import Hadamard
from planish.ir.ops.linear import Linear, QuantizeActivation, QuantizedLinear
from planish.ir.ops.norms import LayerNorm, RmsNorm
from planish.ir.ops.positions import Positions, Rope

OPS: dict[str, type[Op]] = {
    "aten": Aten,
    "attention": Attention,
    "cache_append": CacheAppend,
    "conv2d": Conv2d,
    "embedding": Embedding,
    "gated_activation": GatedActivation,
    "hadamard": Hadamard,
    "last_token": LastToken,
    "layer_norm": LayerNorm,
    "linear": Linear,
    "positions": Positions,
    "quantize_activation": QuantizeActivation,
    "quantized_linear": QuantizedLinear,
    "rms_norm": RmsNorm,
    "rope": Rope,
}


@lru_cache(maxsize=1)
def _outside_ops() -> dict[str, type[Op]]:
    return {point.name: point.load() for point in entry_points(group="planish.ops")}


def op_class(name: str) -> type[Op]:
    """The record of the operation of that name; raises IRError when none is registered."""
    found = OPS.get(name) or _outside_ops().get(name)
    if found is None:
        raise IRError(f"no operation is called {name!r}; known are {', '.join(sorted({**OPS, **_outside_ops()}))}")
    return found


__all__ = [
    "OPS", "Aten", "Attention", "CacheAppend", "Conv2d", "Embedding", "GatedActivation", "Hadamard", "LastToken", "LayerNorm",
    "Linear", "Positions", "QuantizeActivation", "QuantizedLinear", "RmsNorm", "Rope", "Slot", "aten", "op_class",
]  # fmt: skip
