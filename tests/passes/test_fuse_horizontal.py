"""Joining linear maps of one input changes no bit of the result and stores no weight twice."""

from __future__ import annotations

import pytest
import torch

from planish.ir import Interpreter, ParamRef
from planish.ir.ops import GatedActivation
from planish.passes.derive_programs import DerivePrograms
from planish.passes.fuse_horizontal import FuseHorizontal
from planish.passes.pass_base import Context
from planish.passes.quantize import Quantize
from planish.passes.quantize_activations import QuantizeActivations
from planish.testing.tiny_decoder import tiny_decoder

INPUTS = [torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(3)), torch.ones(2, 5, dtype=torch.bool)]


@pytest.mark.parametrize("quantized", [False, True])
def test_results_are_the_same(quantized: bool) -> None:
    module = tiny_decoder(hidden=64, size=16, inner=96)
    if quantized:
        for step in (Quantize(), QuantizeActivations()):
            module = step.apply(module, Context()).module
    joined = FuseHorizontal().apply(module, Context())
    assert joined.matches == 4
    before, after = (Interpreter(m, promote=True).run("forward", INPUTS)[0] for m in (module, joined.module))
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


def test_every_function_is_rewritten_alike() -> None:
    module = DerivePrograms().apply(tiny_decoder(), Context()).module
    joined = FuseHorizontal().apply(module, Context())
    assert joined.matches == 4 * len(module.functions)
    assert DerivePrograms().ensures(module, joined.module, Context()) == ()
    used = {r.name for f in joined.module.functions.values() for r in f.references() if isinstance(r, ParamRef)}
    assert used == set(joined.module.params), "a weight is stored that nothing reads"
    assert sum(p.nbytes for p in joined.module.params.values()) == sum(p.nbytes for p in module.params.values())


def test_a_gate_and_its_up_projection_need_no_split() -> None:
    joined = FuseHorizontal().apply(tiny_decoder(), Context()).module.functions["forward"]
    gates = [n for n in joined.nodes if isinstance(n.op, GatedActivation)]
    assert gates and all(n.inputs[1] is None for n in gates)


def test_a_weight_with_another_reader_is_left_alone() -> None:
    module = tiny_decoder(layers=1)
    forward = module.functions["forward"]
    second = type(forward)("second", forward.inputs, forward.nodes[:-1], forward.outputs[:0], (), {})
    odd = type(forward)(
        "third",
        forward.inputs,
        tuple(n for n in forward.nodes if not any(isinstance(i, ParamRef) and i.name == "0.v" for i in n.inputs))[:6],
        (),
        (),
        {},
    )
    assert FuseHorizontal().apply(module.with_function(second), Context()).matches == 4
    alone = FuseHorizontal().apply(module.with_function(odd), Context()).module
    assert "0.v" in alone.params, "q, k and v were joined though one function reads only two of them"
