"""Compiled modules for tests: built for this machine, run from a temporary artifact, held against the interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from planish.codegen.build import build
from planish.codegen.runtime.executable import Executable
from planish.codegen.target import Target
from planish.ir import Builder, Function, Interpreter, Module, Op, TensorType
from planish.targets import open_target
from planish.testing.agreement import float_fault


@cache
def host() -> Target:
    """The host target, opened once."""
    return open_target("host")


def compiled(module: Module) -> Executable:
    """The module compiled for this machine and loaded."""
    return build(module, host()).load()


def one_call(name: str, op: Op, operands: Sequence[TensorType | None]) -> Function:
    """A function that applies one operation to its inputs, one for each operand that is there."""
    builder = Builder(name)
    inputs = [None if t is None else builder.input(f"x{n}", t) for n, t in enumerate(operands)]
    node = builder.node(op, *inputs)
    return builder.finish(node.outputs, [f"y{n}" for n in range(len(node.outputs))])


def call(executable: Executable, name: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Call any function of a compiled module by position."""
    return [torch.as_tensor(r) for r in executable.programs[name](tensors)]


def faults(
    module: Module, name: str, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor], got: Sequence[torch.Tensor]
) -> list[str]:
    """How results break the rule: integers and bools are the interpreter's; floats differ from its float64 results by at
    most 4 times what its own do, or by 8 units in the last place of the largest."""
    plain = Interpreter(module).run(name, inputs)
    exact = Interpreter(module, promote=True).run(name, inputs)
    found = []
    for number, (result, (label, want)) in enumerate(zip(got, plain.outputs.items())):
        if result.dtype != want.dtype or result.shape != want.shape:
            found.append(f"{label} is {result.dtype}{list(result.shape)}, not {want.dtype}{list(want.shape)}")
        elif not want.dtype.is_floating_point:
            if not torch.equal(result, want):
                found.append(f"{label} is {result.tolist()}, not {want.tolist()}")
        elif complaint := float_fault(result, want, exact[number]):
            found.append(f"{label} {complaint}")
    return found


__all__ = ["call", "compiled", "faults", "float_fault", "host", "one_call"]
