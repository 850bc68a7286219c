"""Differences between models: none for the same one, known ones for changed parameters, never hidden ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import planish
from planish.ir import InputError, Module, dense_param
from planish.model import Model
from planish.testing.tiny_decoder import tiny_decoder


def with_param(module: Module, name: str, tensor: torch.Tensor) -> Module:
    return replace(module, params={**module.params, name: dense_param(name, tensor)})


@pytest.fixture(scope="module")
def scaling() -> Model:
    """forward(x) = weight * x."""

    class Scaling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x

    return planish.trace(Scaling(), (torch.randn(5, 3),))


def test_a_model_equals_itself() -> None:
    (found,) = planish.verify(tiny_decoder(), tiny_decoder())
    assert (found.function, found.output, found.largest, found.relative) == ("forward", "logits", 0, 0)
    assert found.agreement == 1 and found.exact and found.rounding > 0


def test_a_known_difference(scaling: Model) -> None:
    (name,) = scaling.module.params
    (x,) = (v.name for v in scaling.module.functions["forward"].inputs)
    other = with_param(scaling.module, name, torch.tensor([1.0, 2.0, 4.5]))
    (found,) = planish.verify(scaling, other, inputs={x: torch.tensor([[1.0, 1.0, 2.0]] * 5)})
    assert found.largest == 1
    assert math.isclose(found.relative, 1 / math.sqrt(1 + 4 + 64))
    assert found.agreement == 1 and not found.exact


def test_not_a_number_is_no_agreement(scaling: Model) -> None:
    (name,) = scaling.module.params
    other = with_param(scaling.module, name, torch.tensor([1.0, math.nan, 4.0]))
    (found,) = planish.verify(scaling, other)
    assert math.isnan(found.largest) and not found.exact


def test_equal_infinities_do_not_differ(scaling: Model) -> None:
    (x,) = (v.name for v in scaling.module.functions["forward"].inputs)
    (found,) = planish.verify(scaling, scaling, inputs={x: torch.full((5, 3), math.inf)})
    assert found.largest == 0 and found.exact


def test_models_without_a_common_function() -> None:
    module = tiny_decoder()
    renamed = replace(module, functions={"other": replace(module.functions["forward"], name="other")})
    with pytest.raises(InputError, match="share no function with the same inputs"):
        planish.verify(module, renamed)
