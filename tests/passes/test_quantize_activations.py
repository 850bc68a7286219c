"""Integer activations: where they are put, that maps share them, and how little they lose."""

from __future__ import annotations

import pytest
import torch

from planish.ir import InputError, Interpreter, IRError, Node, TensorType, print_function
from planish.ir.ops import Linear, QuantizeActivation, QuantizedLinear
from planish.passes.pass_base import Context
from planish.passes.quantize import Quantize
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.selection import Rule
from planish.testing.tiny_decoder import tiny_decoder

WIDE = {"hidden": 64, "size": 16, "inner": 96}


def count(module: object, op: type) -> int:
    return sum(isinstance(node.op, op) for node in module.functions["forward"].nodes)  # type: ignore[attr-defined]


def test_maps_on_one_input_share_its_codes() -> None:
    module = Quantize().apply(tiny_decoder(layers=1, **WIDE), Context()).module
    result = QuantizeActivations().apply(module, Context())
    assert result.matches == 8 and count(result.module, Linear) == 0 and count(result.module, QuantizedLinear) == 8
    # One for queries, keys and values, one for gate and up.
    assert count(result.module, QuantizeActivation) == 5
    kept = QuantizeActivations(ignore=("embedding", "down$")).apply(module, Context()).module
    assert count(kept, Linear) == 2


def test_dense_weights_keep_their_inputs() -> None:
    module = tiny_decoder(**WIDE)
    result = QuantizeActivations().apply(module, Context())
    assert result.matches == 0 and result.module is module
    some = Quantize(format=None, rules=(Rule(match="^0.q$", format=4),)).apply(module, Context()).module
    assert QuantizeActivations().apply(some, Context()).matches == 1


def test_eight_bits_of_activations_lose_little_beside_four_of_weights() -> None:
    module = tiny_decoder(**WIDE)
    inputs = [torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.bool)]
    exact = Interpreter(module, promote=True).run("forward", inputs)[0]
    errors = []
    small = Quantize().apply(module, Context()).module
    for subject in (small, QuantizeActivations().apply(small, Context()).module):
        y = Interpreter(subject, promote=True).run("forward", inputs)[0]
        errors.append(float((y - exact).norm() / exact.norm()))
    assert errors[0] < errors[1] * 1.2 and errors[1] < errors[0] * 1.2


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_have_the_bits_asked_for_and_use_them(bits: int) -> None:
    module = Quantize().apply(tiny_decoder(**WIDE), Context()).module
    result = QuantizeActivations(bits=bits).apply(module, Context()).module
    seen: list[int] = []

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        if isinstance(node.op, QuantizeActivation):
            seen.append(int(results[0].abs().max()))

    inputs = [torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.bool)]
    Interpreter(result, observe=observe).run("forward", inputs)
    assert seen and set(seen) == {2 ** (bits - 1) - 1}


def test_eight_bits_are_what_a_text_means_that_names_none() -> None:
    module = Quantize().apply(tiny_decoder(layers=1, **WIDE), Context()).module
    quantized = [QuantizeActivations(bits=bits).apply(module, Context()).module for bits in (8, 4)]
    texts = [print_function(each.functions["forward"]) for each in quantized]
    assert "quantize_activation(" in texts[0] and "bits" not in texts[0]
    assert "{bits = 4}" in texts[1] and texts[1].replace(" {bits = 4}", "") == texts[0]


@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match="option 'bits' of pass 'quantize-activations' is"):
        QuantizeActivations.from_options({"bits": bits})
    with pytest.raises(IRError, match=f"codes of {bits} bits are not supported; choose 2 to 8"):
        QuantizeActivation(bits).infer(TensorType(torch.float32, (2, 3)))


def test_what_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(InputError, match=r"'\[' in `ignore` is no regular expression"):
        QuantizeActivations(ignore=("[",)).apply(tiny_decoder(**WIDE), Context())
