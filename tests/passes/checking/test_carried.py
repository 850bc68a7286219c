"""Values that a pass turned, scaled or moved: the checker cuts there, and holds the image to what the pass says it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import planish
from planish.ir import Module, dense_param
from planish.passes.check import Checker, CheckOptions
from planish.passes.checking.alignment import Alignment
from planish.passes.checking.outcome import CHECKED, FAILED
from planish.passes.contract import Exact
from planish.passes.equalize import Equalize
from planish.passes.pass_base import Carried, Context, Pass, PassResult
from planish.passes.rotation_fusion import RotationFusion

LAYERS = 10


class Deep(nn.Module):
    """Many layers on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)
        self.ups = nn.ModuleList(nn.Linear(16, 8) for _ in range(LAYERS))
        self.downs = nn.ModuleList(nn.Linear(8, 16) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for up, down in zip(self.ups, self.downs):
            x = x + down(torch.relu(up(nn.functional.rms_norm(x * 3, (16,), eps=1e-6))))
        y: torch.Tensor = self.last(x)
        return y


@pytest.fixture(scope="module")
def module() -> Module:
    torch.manual_seed(0)
    network = Deep()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 4
        for up in network.ups:
            up.weight *= torch.logspace(-2, 2, 8)[:, None]  # type: ignore[operator]
    return planish.trace(network, (torch.randn(3, 4),), check=False).module


def checked(module: Module, result: PassResult) -> list[str]:
    """What fails; and everything must have been checked within bounds."""
    outcome = Checker(CheckOptions(probes=1)).check(
        module, result.module, Exact(), result.correspondence, result.carried
    )
    assert all(region.status in (CHECKED, FAILED) for region in outcome.regions)
    return [f"{o.place}: {o.sentence}" for o in outcome.regions if o.status == FAILED]


@pytest.mark.parametrize("step", [RotationFusion(), RotationFusion(kind="random"), Equalize()])
def test_every_operation_is_held_to_its_image(step: Pass, module: Module) -> None:
    result = step.apply(module, Context())
    assert result.matches and not checked(module, result)
    source, after = (m.functions["forward"] for m in (module, result.module))
    claims, images = result.correspondence["forward"], result.carried["forward"]
    largest = [
        max(
            len(region.source_nodes)
            for region in Alignment(module, result.module, source, after, claims, used).regions()
        )
        for used in (images, {})
    ]
    # Without the images a region reaches back to the beginning of the stream, and its bound grows with it.
    assert largest[0] == 1 and (largest[1] > LAYERS or isinstance(step, Equalize))


def test_a_weight_that_was_turned_otherwise_is_found_where_it_is(module: Module) -> None:
    result = RotationFusion().apply(module, Context())
    name = "downs.6.weight"
    wrong = result.module.params[name].value().clone()
    wrong[5] *= 1 + 1e-4
    broken = replace(result, module=result.module.with_params([dense_param(name, wrong)]))
    (failed,) = checked(module, broken)
    nodes = module.functions["forward"].nodes
    (guilty,) = [n for n in nodes if any(getattr(i, "name", "") == name for i in n.inputs)]
    assert failed.startswith("forward, linear") and (not guilty.source or guilty.source in failed)


def test_an_image_that_is_another_one_is_found(module: Module) -> None:
    result = RotationFusion().apply(module, Context())
    images = dict(result.carried["forward"])
    value = [*images][len(images) // 2]
    right = images[value]
    images[value] = Carried(right.operand, lambda tensor: right.image(tensor) * (1 + 1e-7), right.bound, right.terms)
    assert checked(module, replace(result, carried={"forward": images}))
