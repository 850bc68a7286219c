"""Folding batch norms: what vanishes, what stays and why. That a fold keeps the numbers is shown with every other rule's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from planish.frontends import import_module
from planish.ir import Interpreter, Module
from planish.ir.ops import Aten
from planish.passes.canonicalise import Canonicalise
from planish.passes.dead_code import DeadCode
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.fold_constants import FoldConstants
from planish.passes.manager import PassManager
from planish.passes.raise_model_ops import RaiseModelOps
from planish.testing.torch_modules import randomize

IMAGES, ROWS = (2, 3, 7, 6), (5, 4)


def _folded(module: nn.Module, shape: tuple[int, ...]) -> tuple[Module, tuple[str, ...], torch.Tensor, torch.Tensor]:
    """The module after folding, what was refused, an input and eager torch's float64 result."""
    generator = torch.Generator().manual_seed(3)
    randomize(module.eval(), generator)
    x = torch.randn(shape, generator=generator)
    raised, _ = PassManager([Canonicalise(), RaiseModelOps()]).run(import_module(module, (x,)))
    folded, report = PassManager([FoldBatchNorm(), FoldConstants(), DeadCode()]).run(raised)
    with torch.no_grad():
        return folded, report.passes[0].refusals, x, module.double()(x.double())


def _norms(module: Module) -> int:
    calls = [n.op.overload for n in module.functions["forward"].nodes if isinstance(n.op, Aten)]
    return sum("batch_norm" in overload for overload in calls)


class Branching(nn.Module):
    """A convolution whose result is read with and without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("layer", ["convolution", "linear map"])
def test_a_norm_behind_a_layer_becomes_part_of_it(layer: str, affine: bool, bias: bool) -> None:
    if layer == "convolution":
        network: nn.Module = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=bias), nn.BatchNorm2d(6, affine=affine))
    else:
        network = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6, affine=affine))
    module, _, x, want = _folded(network, IMAGES if layer == "convolution" else ROWS)
    assert len(module.functions["forward"].nodes) == 1
    got = Interpreter(module, promote=True).run("forward", [x])[0]
    assert float((got - want).abs().max()) <= 1e-13 * float(want.abs().max())


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), IMAGES),
        (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5)), (2, 5, 4)),
        (Branching(), IMAGES),
    ],
    ids=["not behind a layer", "over another axis", "read twice"],
)
def test_other_norms_stay(network: nn.Module, shape: tuple[int, ...]) -> None:
    module, _, x, want = _folded(network, shape)
    assert _norms(module) == 1
    got = Interpreter(module, promote=True).run("forward", [x])[0]
    assert float((got - want).abs().max()) <= 1e-13 * float(want.abs().max())


def test_a_refusal_says_who_else_reads_the_layer() -> None:
    _, refusals, _, _ = _folded(Branching(), IMAGES)
    assert any("the inner result of conv2d is also read by add.Tensor" in sentence for sentence in refusals)


def test_weights_of_16_bits_are_not_rounded_again() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(torch.bfloat16).eval()
    traced = import_module(network, (torch.randn(IMAGES).to(torch.bfloat16),))
    raised, _ = PassManager([Canonicalise(), RaiseModelOps()]).run(traced)
    module, report = PassManager([FoldBatchNorm()]).run(raised)
    assert _norms(module) == 1
    assert any("rounded once more" in sentence for sentence in report.passes[0].refusals)
