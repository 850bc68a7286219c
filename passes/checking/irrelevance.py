"""Whether elements of inner values matter: under a Refines contract, some hold what no promised result depends on.

A row that attends to nothing, for one, holds whatever a mask's arithmetic left there. Such elements are not argued
about: the source is run with noise in their place, and they are irrelevant if no promised result changes a bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from planish.ir.interpret import Interpreter, Result
from planish.ir.module import Function, Module, Operand, ParamRef, Value
from planish.passes.checking.probes import Probe


def irrelevant(
    module: Module, function: Function, probe: Probe, disturbed: Mapping[Value, torch.Tensor], undisturbed: Result,
    open_results: Mapping[str, torch.Tensor | None],
) -> bool:  # fmt: skip
    """Whether the function's results stay the same with noise at the masked elements of the `disturbed` values.

    Args:
        undisturbed: the function's results on the probe, in float64.
        open_results: by output name, the elements about which the contract promises nothing.
    """
    interpreter = Interpreter(module, promote=True)
    known: dict[Value, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def read(operand: Operand) -> torch.Tensor:
        if isinstance(operand, Value):
            return known[operand]
        if isinstance(operand, ParamRef):
            return interpreter.param(operand.name)
        return _wide(probe.states[operand.name])

    for value in function.inputs:
        known[value] = _wide(probe.inputs[value.name])
    for node in function.live_nodes():
        operands = tuple(None if i is None else read(i) for i in node.inputs)
        for value, tensor in zip(node.outputs, interpreter.evaluate(node, operands, probe.sizes)):
            mask = disturbed.get(value)
            if mask is not None:
                if not tensor.dtype.is_floating_point:
                    return False
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor = torch.where(mask, noise, tensor)
            known[value] = tensor
    for number, name in enumerate(function.output_names):
        if not _same(read(function.outputs[number]), undisturbed[number], open_results.get(name)):
            return False
    return all(_same(read(o), undisturbed.states[name], None) for name, o in function.updates.items())


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64) if tensor.dtype.is_floating_point else tensor


def _same(a: torch.Tensor, b: torch.Tensor, ignore: torch.Tensor | None) -> bool:
    equal = (a == b) | (a.isnan() & b.isnan())
    return bool((equal if ignore is None else equal | ignore).all())
