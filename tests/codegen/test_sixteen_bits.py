"""Models whose activations have 16 bits: encoded weights stay encoded, and results are rounded once."""

from __future__ import annotations

import pytest
import torch

from planish.codegen.build import build
from planish.ir import Dense, Encoding, Float8, GroupedInt, InMemory, Levels, MxFp4, NvFp4, Param, TensorType
from planish.ir.ops import Linear
from planish.testing.compiled import call, faults, host
from planish.testing.kernel_cases import Case, module_of

OUTS, INS = 37, 96
ENCODINGS: list[Encoding] = [
    Dense(torch.bfloat16),
    GroupedInt(4, 32),
    GroupedInt(3, 96, torch.bfloat16, True),
    Levels("ternary", 32),
    NvFp4(),
    MxFp4(),
    Float8(),
]


def weight(encoding: Encoding, dtype: torch.dtype) -> Param:
    values = torch.randn(OUTS, INS, generator=torch.Generator().manual_seed(1)).to(dtype)
    type = TensorType(dtype, (OUTS, INS))
    return Param(f"{encoding}.{dtype}", type, encoding, InMemory(encoding.encode(values)))


@pytest.mark.full
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.full), torch.bfloat16], ids=str)
def test_linear_maps_on_sixteen_bits_read_every_encoding(dtype: torch.dtype) -> None:
    cases = {
        f"{encoding}_{rows}": Case(Linear(), (TensorType(dtype, (rows, INS)), weight(encoding, dtype), None))
        for encoding in ENCODINGS
        for rows in (1, 9)
    }
    module = module_of(cases)
    artifact = build(module, host())
    executable, broken = artifact.load(), []
    for number, (name, case) in enumerate(cases.items()):
        inputs = case.inputs(number)
        broken += [f"{name}: {fault}" for fault in faults(module, name, inputs, call(executable, name, inputs))]
    assert not broken, "\n".join(broken)
    of_functions = artifact.report["functions"]
    for name, case in cases.items():
        _, param, _ = case.operands
        assert isinstance(param, Param)
        kernels = [step["kernel"] for step in of_functions[name]["steps"]]
        assert any(str(param.encoding) in kernel for kernel in kernels), f"{name} is computed by {kernels}"
