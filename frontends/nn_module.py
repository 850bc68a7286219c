"""From an nn.Module with example inputs to a module of the IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from planish.frontends.exported import import_exported
from planish.frontends.tracing import export
from planish.ir import InputError, Module


def import_module(
    module: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[Any],
    dynamic_shapes: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    output_names: Sequence[str] | None = None,
) -> Module:
    """The module traced by torch.export on example inputs.

    Args:
        module: any module that torch.export traces; call eval() on it first.
        example_inputs: the positional arguments of its forward (a tensor alone stands for one argument).
        dynamic_shapes: which axes may have any size, as torch.export.export takes it: a dict by argument name or a
            sequence, of dicts from axis to torch.export.Dim. The names of the Dims become the symbols of the module.
        example_kwargs: the keyword arguments of its forward.
        output_names: names of the outputs; without it they follow from the structure the module returns.

    Raises:
        InputError: when the arguments are not what a module is traced with.
        UnsupportedError: when the module cannot be traced or imported, listing what stands in the way.
    """
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"a torch.nn.Module is needed, got {type(module).__name__}")
    given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    program = export(module, given, example_kwargs, dynamic_shapes)
    metadata = {"kind": "plain", "architecture": type(module).__name__}
    return import_exported(program, dynamic_shapes=dynamic_shapes, output_names=output_names, metadata=metadata)
