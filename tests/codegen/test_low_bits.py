"""Layers with weights of every encoding, compiled for this machine, against the interpreter."""

from __future__ import annotations

import pytest
import torch

from planish.codegen.family import with_float_scales
from planish.ir import GroupedInt, TensorType
from planish.ir.ops import Embedding, Linear
from planish.testing.compiled import call, compiled, faults
from planish.testing.kernel_cases import LOW_BITS, Case, encoded, low_bit_linear, module_of

INT8_SCALES = GroupedInt(4, 8, torch.int8)


@pytest.mark.full
def test_scales_of_int8_are_read_by_every_kernel_of_weights() -> None:
    """As the same numbers in float32: the results have the same bits."""
    cases = {
        "product": low_bit_linear(3, 37, 192, INT8_SCALES, unit=False),
        "linear": Case(Linear(), (TensorType(torch.float32, (3, 192)), encoded("decoded", 37, 192, INT8_SCALES), None)),
        "rows": Case(Embedding(), (TensorType(torch.int64, (5,)), encoded("table", 37, 192, INT8_SCALES))),
    }
    module = module_of(cases)
    wide = module.with_params([with_float_scales(param) for param in module.params.values()])
    assert {str(p.encoding) for p in wide.params.values()} == {"int4g8sf32", "f32"}
    one, other = compiled(module), compiled(wide)
    for number, (name, case) in enumerate(cases.items()):
        inputs = case.inputs(number)
        got, want = call(one, name, inputs), call(other, name, inputs)
        assert not faults(module, name, inputs, got)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.full
def test_every_encoding_agrees_with_the_interpreter() -> None:
    module, broken = module_of(LOW_BITS), []
    executable = compiled(module)
    for number, (name, case) in enumerate(LOW_BITS.items()):
        inputs = case.inputs(number)
        broken += [f"{name}: {fault}" for fault in faults(module, name, inputs, call(executable, name, inputs))]
    assert not broken, "\n".join(broken)
