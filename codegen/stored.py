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


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of a dtype that every runtime knows: bfloat16 as the uint16 of its bits."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
