"""Modules without their weights: parameters are fake tensors of the right shape and dtype, buffers are real.

Weights are never allocated, so that a model of any size is built and traced in little memory. Buffers that a module
computes when it is made (rotary frequencies, masks) have their values, which no checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from planish.ir.interpret import default_dtype


class _EmptyOnMeta(TorchFunctionMode):
    """Sends `torch.empty`, by which modules allocate their weights, to the meta device; all else stays real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def without_weights(
    build: Callable[[], torch.nn.Module], dtype: torch.dtype
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The module that `build` makes, in evaluation mode, with fake parameters, and its real buffers by name."""
    with default_dtype(dtype), _EmptyOnMeta():
        module = build().eval()
    buffers = {name: buffer for name, buffer in module.named_buffers() if not buffer.is_meta}
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    replaced: dict[int, tuple[Any, Any]] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        # The original is kept beside its replacement, so that its id stays taken; tied weights stay tied.
        if id(tensor) not in replaced:
            with mode:
                made = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            replaced[id(tensor)] = (tensor, torch.nn.Parameter(made, requires_grad=False) if is_parameter else made)
        result: torch.Tensor = replaced[id(tensor)][1]
        return result

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = fake(parameter)  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[name] = fake(buffer)
    return module, buffers
