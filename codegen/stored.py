"""Parameters as the artifact stores them when no kernel wants a layout of its own."""

from __future__ import annotations

import torch

from planish.codegen.family import Packed
from planish.ir import Dense, Param


def dense(param: Param) -> Packed:
    """The parameter element by element: in its stored dtype, or decoded to its logical one when it is encoded."""
    dtype = param.encoding.dtype if isinstance(param.encoding, Dense) else param.type.dtype

    def make() -> torch.Tensor:
        value = param.storage()["values"] if isinstance(param.encoding, Dense) else param.value()
        return as_stored(value)

    return Packed(param.name, dtype, param.type.concrete({}), make)


def as_float32(param: Param) -> Packed:
    """The parameter decoded to float32, for kernels that read nothing else."""
    if param.encoding == Dense(torch.float32) and param.type.dtype == torch.float32:
        return dense(param)

    def make() -> torch.Tensor:
        return param.value().to(torch.float32).contiguous()

    return Packed(f"{param.name}:f32", torch.float32, param.type.concrete({}), make)


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of a dtype that every runtime knows: bfloat16 as the uint16 of its bits."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
