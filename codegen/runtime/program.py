"""One compiled function with its signature: arguments are checked here, so that compiled code need not guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import tvm_ffi

from planish.codegen.runtime.tensors import from_compiled, to_compiled
from planish.ir import InputError, IRError, TensorType
from planish.ir.text.expressions import ExpressionParser
from planish.ir.text.scanner import Scanner
from planish.ir.types import bind_shape, dtype_name


def parse_type(text: str) -> TensorType:
    """A type as the manifest writes it ("f32[B, S, 7]")."""
    return ExpressionParser(Scanner(text)).tensor_type()


class Program:
    """A compiled function.

    Attributes:
        inputs: names and types of its tensors, in order.
        outputs: names and types of its results.
        states: names of the states it takes after its inputs; it writes them where they are.
    """

    def __init__(self, name: str, function: Any, signature: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        self.name, self._function = name, function
        self.inputs = {i["name"]: parse_type(i["type"]) for i in signature["inputs"]}
        self.outputs = {o["name"]: parse_type(o["type"]) for o in signature["outputs"]}
        self.states: list[str] = list(signature["states"])
        self._weights = tvm_ffi.convert([weights[key] for key in signature["weights"]])

    def __call__(
        self, tensors: Sequence[torch.Tensor] | Mapping[str, torch.Tensor], states: Sequence[torch.Tensor] = ()
    ) -> list[torch.Tensor]:
        """Results in order. `states` are tensors as they lie in memory, in the order of `self.states`.

        Raises:
            InputError: when a tensor is missing, or its dtype or shape is not the declared one.
        """
        given = self._in_order(tensors)
        self._check(given)
        arguments = [to_compiled(t) for t in (*given, *states)]
        results = self._function(*arguments, self._weights)
        return [from_compiled(r, t.dtype) for r, t in zip(results, self.outputs.values())]

    def _in_order(self, tensors: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        names = list(self.inputs)
        if isinstance(tensors, Mapping):
            if set(tensors) != set(names):
                raise InputError(f"{self.name} takes the tensors {', '.join(names)}, but got {', '.join(tensors)}")
            return [tensors[n] for n in names]
        if len(tensors) != len(names):
            raise InputError(f"{self.name} takes {len(names)} tensors ({', '.join(names)}), but got {len(tensors)}")
        return list(tensors)

    def _check(self, tensors: Sequence[torch.Tensor]) -> None:
        bindings: dict[str, int] = {}
        for tensor, (name, type) in zip(tensors, self.inputs.items()):
            what = f"the tensor {name!r} of {self.name}"
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{what} must be a torch tensor, not {tensor.__class__.__name__}")
            if tensor.dtype != type.dtype:
                raise InputError(f"{what} is {tensor.dtype}, but {dtype_name(type.dtype)} was declared")
            try:
                bind_shape(type, tensor.shape, bindings, what)
            except IRError as error:
                raise InputError(str(error)) from error
