"""Plain networks through the front door: the interpreter against eager torch, the compiled artifact against the interpreter.

The rule for numbers: what the artifact computes in float32 may differ from float64 by at most 4 times what eager float32
differs from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import planish
from planish.codegen.runtime.executable import Executable
from planish.ir import Interpreter, Module
from planish.ir.ops import Attention, Conv2d, LayerNorm, Linear
from planish.testing.compiled import faults
from planish.testing.networks import residual_network, vision_transformer
from planish.testing.torch_modules import TorchCase, torch_cases

# Sizes that no tile divides, and that the strides do not divide either; scores enough for a largest difference to mean
# something.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "residual network": (lambda: residual_network((5, 9, 14), 1, 31), (43, 37)),
    "vision transformer": (lambda: vision_transformer(27, 9, 20, 2, 2, 31), (27, 27)),
    "vision transformer, mean of patches": (lambda: vision_transformer(28, 7, 18, 3, 1, 31, False), (28, 28)),
    # Many elements for each image, so that kernels decide at run time between one thread and several.
    "wide vision transformer": (lambda: vision_transformer(96, 12, 516, 6, 1, 41), (96, 96)),
}


class Traced:
    """A network with its module, its artifact and its float64 self."""

    def __init__(self, name: str) -> None:
        make, self.size = NETWORKS[name]
        self.network = make()
        self.wide = copy.deepcopy(self.network).double()
        example = self.images(3)
        model = planish.trace(self.network, (example,), dynamic_shapes=({0: torch.export.Dim("B")},))
        self.module: Module = model.module
        self.executable: Executable = planish.build(model, "host").load()

    def images(self, batch: int) -> torch.Tensor:
        return torch.randn(batch, 3, *self.size, generator=torch.Generator().manual_seed(batch))


@pytest.fixture(scope="module", params=list(NETWORKS))
def traced(request: pytest.FixtureRequest) -> Traced:
    return Traced(request.param)


@pytest.mark.full
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_interpreter_in_float64_is_eager_float64(traced: Traced, batch: int) -> None:
    images = traced.images(batch)
    with torch.no_grad():
        want = traced.wide(images.double())
    got = Interpreter(traced.module, promote=True).run("forward", [images])[0]
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= 1e-12 * float(want.abs().max())


@pytest.mark.full
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_artifact_is_as_near_to_float64_as_eager_float32(traced: Traced, batch: int) -> None:
    images = traced.images(batch)
    with torch.no_grad():
        want, eager = traced.wide(images.double()), traced.network(images).double()
    got = traced.executable(images)
    assert isinstance(got, torch.Tensor) and got.shape == want.shape
    assert float((got - want).abs().max()) <= 4 * float((eager - want).abs().max())


@pytest.mark.full
def test_an_image_has_the_same_scores_in_any_batch(traced: Traced) -> None:
    images = traced.images(5)
    together = traced.executable(images)
    for row in range(5):
        alone = traced.executable(images[row : row + 1])
        assert isinstance(together, torch.Tensor) and isinstance(alone, torch.Tensor)
        assert torch.equal(alone[0], together[row])


@pytest.mark.full
def test_every_layer_is_a_model_operation(traced: Traced) -> None:
    """What has a kernel of its own is recognised: nothing is left to be computed element by element."""
    for layer, operation in ((nn.Conv2d, Conv2d), (nn.Linear, Linear), (nn.LayerNorm, LayerNorm)):
        there = sum(isinstance(m, layer) for m in traced.network.modules())
        found = [n for n in traced.module.functions["forward"].nodes if isinstance(n.op, operation)]
        assert len(found) == there
    blocks = [n for n in traced.module.functions["forward"].nodes if isinstance(n.op, Attention)]
    assert len(blocks) == len(getattr(traced.network, "blocks", ()))


@pytest.mark.full
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(torch_cases())
def test_random_networks_compile_to_what_the_interpreter_computes(case: TorchCase) -> None:
    model = planish.trace(case.module, case.example, dynamic_shapes=case.dynamic_shapes)
    executable = planish.build(model, "host").load()
    for inputs in (case.example, case.other):
        got = executable(*inputs)
        assert isinstance(got, torch.Tensor)
        assert not faults(model.module, "forward", inputs, [got])
