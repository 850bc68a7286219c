"""Layers with weights of every encoding, compiled for this machine, against the interpreter."""

from __future__ import annotations

import pytest

from planish.testing.compiled import call, compiled, faults
from planish.testing.kernel_cases import LOW_BITS, module_of

pytestmark = pytest.mark.full


def test_every_encoding_agrees_with_the_interpreter() -> None:
    module, broken = module_of(LOW_BITS), []
    executable = compiled(module)
    for number, (name, case) in enumerate(LOW_BITS.items()):
        inputs = case.inputs(number)
        broken += [f"{name}: {fault}" for fault in faults(module, name, inputs, call(executable, name, inputs))]
    assert not broken, "\n".join(broken)
