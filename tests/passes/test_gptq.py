"""GPTQ of one weight: exact accounts of its loss, agreement with the definition, and what its Hessians may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import Encoding, Grouped, GroupedInt, InputError, Levels, MxFp4, NvFp4
from planish.ir.encodings.grouped import Rounded
from planish.ir.types import TensorType
from planish.passes import gptq as subject
from planish.passes import rounding_grids
from planish.passes.gptq import curvature, gptq
from planish.passes.rounding_grids import RoundingGrid, grid_of
from planish.passes.scale_search import FRACTIONS, encode_searched

ENCODINGS: list[Encoding] = [
    GroupedInt(2, 8, torch.float32), GroupedInt(3, 16), GroupedInt(3, 16, torch.float32, True), GroupedInt(4, 48),
    Levels("sign", 48, torch.float32), Levels("ternary", 8), Levels("stretched", 16), NvFp4(), MxFp4(),
]  # fmt: skip


FEATURES = 96
"""A multiple of every group."""


def drawn(seed: int, rows: int = 5, features: int = FEATURES) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Hessian of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, features, generator=g, dtype=torch.float64)
    x = x @ torch.randn(features, features, generator=g, dtype=torch.float64) * torch.rand(features, generator=g)
    return torch.randn(rows, features, generator=g), x.t() @ x / len(x)


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)


def grid(encoding: Encoding, weight: torch.Tensor) -> RoundingGrid:
    found = grid_of(encoding, weight)
    assert found is not None
    return found


def decoded(encoding: Encoding, storage: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return encoding.decode(storage, TensorType(torch.float64, tuple(weight.shape)))


@given(seed=st.integers(0, 1 << 20), damping=st.sampled_from([0.01, 0.1, 1.0]))
@settings(max_examples=20, deadline=None)
def test_the_factor(seed: int, damping: float) -> None:
    _, hessian = drawn(seed)
    factor = curvature(hessian.clone(), damping, "w").factor
    assert torch.equal(factor, factor.triu())
    product = factor.t() @ factor @ damped(hessian, damping)
    # The condition number is at most trace / smallest eigenvalue <= n (1 + damping) / damping.
    allowed = FEATURES**2 * (1 + damping) / damping * 2**-52 * 16
    assert float((product - torch.eye(FEATURES, dtype=torch.float64)).abs().max()) <= allowed


@pytest.mark.full
@given(
    seed=st.integers(0, 1 << 20),
    encoding=st.sampled_from(ENCODINGS),
    block=st.sampled_from([8, 16, 128]),
    refine=st.integers(0, 2),
)
@settings(max_examples=30, deadline=None)
def test_the_loss_is_the_error_of_the_outputs(seed: int, encoding: Encoding, block: int, refine: int) -> None:
    weight, hessian = drawn(seed)
    cost = curvature(hessian.clone(), 0.01, "w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "BLOCK", block)
        patch.setattr(subject, "ROWS", 2)
        rounding = gptq(weight, cost, grid(encoding, weight), refine=refine)
    error = decoded(encoding, rounding.storage, weight) - weight.double()
    exact = float((error @ damped(hessian, 0.01) * error).sum()) / len(weight)
    assert rounding.loss == pytest.approx(exact, rel=1e-9)


@given(seed=st.integers(0, 1 << 20), encoding=st.sampled_from(ENCODINGS))
@settings(max_examples=20, deadline=None)
def test_columns_one_by_one_with_the_inverse_hessian_give_the_same(seed: int, encoding: Encoding) -> None:
    """The definition: after each column the rest moves to its best place, by the inverse Hessian of what is left."""
    weight, hessian = drawn(seed)
    storage = gptq(weight, curvature(hessian.clone(), 0.01, "w"), grid(encoding, weight), refine=0).storage
    rest, left, of = damped(hessian, 0.01), weight.double().clone(), grid(encoding, weight)
    codes, scales, zeros = [], [], []
    for j in range(weight.shape[1]):
        if j % of.group == 0:
            scale, zero = of.fitted(left[:, j : j + of.group])
            scales.append(scale)
            zeros.append(zero)
        column = left[:, j : j + 1]
        code = of.codes(column, scale.double(), zero)
        error = column - of.restored(code, scale, zero)
        inverse = torch.linalg.inv(rest[j:, j:])
        left[:, j:] -= error * inverse[0] / inverse[0, 0]
        codes.append(code)
    wanted = of.packed(
        Rounded(
            torch.cat(codes, 1).unflatten(1, (-1, of.group)),
            torch.stack(scales, 1),
            None if zeros[0] is None else torch.stack(zeros, 1),  # type: ignore[arg-type]
        )
    )
    assert all(torch.equal(storage[field], wanted[field]) for field in wanted)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_it_loses_less_than_rounding(encoding: Encoding) -> None:
    gains = []
    for seed in range(8):
        weight, hessian = drawn(seed, rows=32)
        losses = []
        by_search = encode_searched(encoding, weight) if isinstance(encoding, Grouped) else encoding.encode(weight)
        for storage in (gptq(weight, curvature(hessian.clone(), 0.01, "w"), grid(encoding, weight)).storage, by_search):
            error = decoded(encoding, storage, weight) - weight.double()
            losses.append(float((error @ damped(hessian, 0.01) * error).sum()))
        gains.append(losses[0] / losses[1])
    assert sorted(gains)[4] < 1, gains


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight, _ = drawn(3)
    encoding = GroupedInt(3, 16)
    cost = curvature(torch.eye(FEATURES, dtype=torch.float64) * 2, 0.01, "w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding_grids, "COARSE", FRACTIONS)
        storage = gptq(weight, cost, grid(encoding, weight), refine=0).storage
    assert all(torch.equal(t, storage[field]) for field, t in encode_searched(encoding, weight).items())


def test_features_that_are_always_zero_are_rounded_to_nearest() -> None:
    weight, hessian = drawn(5)
    dead = torch.tensor([1, 7, 30])
    hessian[dead], hessian[:, dead] = 0.0, 0.0
    encoding = GroupedInt(4, FEATURES, torch.float32)
    storage = gptq(weight, curvature(hessian, 0.01, "w"), grid(encoding, weight)).storage
    step = storage["scales"].double().abs()
    error = (decoded(encoding, storage, weight) - weight.double())[:, dead].abs()
    # One scale serves the row, so what is not clipped is within half a step.
    inside = weight.double()[:, dead].abs() <= 7 * step
    assert bool((error <= step / 2 * (1 + 1e-12))[inside].all()) and bool(inside.any())
    nothing = curvature(torch.zeros(FEATURES, FEATURES, dtype=torch.float64), 0.01, "w").factor
    assert torch.equal(nothing, torch.eye(FEATURES, dtype=torch.float64))


@pytest.mark.parametrize(
    ("hessian", "sentence"),
    [
        (torch.full((3, 3), float("nan")), "the Hessian of 'w' holds NaN or infinity"),
        (torch.full((3, 3), float("inf")), "the Hessian of 'w' holds NaN or infinity"),
        (torch.ones(3, 3), "is not positive definite with damping 0; calibrate with more tokens than its 3 input"),
    ],
)
def test_hessians_that_are_refused(hessian: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        curvature(hessian.double(), 0.0, "'w'")
