"""Descent over orthogonal matrices: the gradient that the group has, steps that stay on it, and the way back to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.passes.rotation_fusion import Rotation
from planish.passes.training.cayley import CayleySGD, cayley, polar, tangent

UNIT = 2.0**-53


def drawn(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skew(size: int, seed: int) -> torch.Tensor:
    matrix = drawn(size, seed)
    return matrix - matrix.T


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return Rotation("random", size, seed).matrix


def residual(matrix: torch.Tensor) -> float:
    return float((matrix @ matrix.T - torch.eye(len(matrix), dtype=matrix.dtype)).abs().max())


def of_step(skewed: torch.Tensor) -> float:
    """What a solve and the product behind it may leave: n terms, n roundings each, times the size of the system."""
    return 8 * len(skewed) ** 2 * UNIT * (1 + float(skewed.abs().sum(0).amax()))


@given(st.integers(1, 9), st.integers(0, 99))
def test_the_tangent_gives_the_derivative_along_every_direction(size: int, seed: int) -> None:
    rotation, gradient, along = orthogonal(size, seed), drawn(size, seed + 1), skew(size, seed + 2)
    found = tangent(rotation, gradient)
    assert torch.equal(found, -found.T)
    expected = (gradient * (rotation @ along)).sum()
    allowed = 4 * size * UNIT * float((gradient.abs() * (rotation.abs() @ along.abs())).sum() * size)
    assert abs(float((found * along).sum() - expected)) <= allowed


@given(st.integers(1, 24), st.integers(0, 99), st.floats(0.01, 3.0))
def test_the_closed_form_is_where_the_published_iteration_ends(size: int, seed: int, length: float) -> None:
    """With X = R^T, V = -G^T, W = V X^T made skew: Y = X + a W (X + Y) / 2, which is iterated there five times."""
    rotation, gradient = orthogonal(size, seed), drawn(size, seed + 1)
    first = -gradient.T @ rotation
    half = first - 0.5 * rotation.T @ (rotation @ first)
    step = half - half.T
    # Within the published bound on the rate; length 1 is the bound itself, where the iteration converges.
    rate = min(length, 1.0) / (float(step.abs().sum(0).amax()) + 1e-8)
    x = rotation.T
    y = x.clone()
    for _ in range(200):
        y = x + rate * step @ ((x + y) / 2)
    found = rotation @ cayley(-rate * tangent(rotation, gradient))
    assert float((found - y.T).abs().max()) <= of_step(rate * step) * 4


@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e6]), st.sampled_from([0.0, 0.9]))
def test_steps_stay_on_the_group(size: int, seed: int, rate: float, momentum: float) -> None:
    rotation = torch.nn.Parameter(orthogonal(size, seed))
    optimiser, allowed = CayleySGD([rotation], rate, momentum), residual(rotation.detach())
    for number in range(5):
        rotation.grad = drawn(size, seed + number)
        optimiser.step()
        # No step is longer than 1 in the norm that bounds it.
        allowed += 8 * size**2 * UNIT * 2
        assert residual(rotation.detach()) <= allowed


def test_a_step_goes_down_and_no_further_than_it_may() -> None:
    start, gradient = orthogonal(6, 0), drawn(6, 1)
    ends = []
    for rate in (1e-7, 1e9, 1 / float(tangent(start, gradient).abs().sum(0).amax())):
        rotation = torch.nn.Parameter(start.clone())
        rotation.grad = gradient
        CayleySGD([rotation], rate).step()
        ends.append(rotation.detach())
    down = float(((ends[0] - start) * gradient).sum())
    expected = -1e-7 * float(tangent(start, gradient).square().sum())
    # The second order of a step of 1e-7.
    assert abs(down - expected) <= 1e-5 * abs(expected)
    assert float((ends[1] - ends[2]).abs().max()) <= 64 * UNIT


def test_momentum_is_what_the_group_saw_before() -> None:
    start, gradients = orthogonal(5, 0), [drawn(5, n) for n in (1, 2, 3)]
    rotation, expected = torch.nn.Parameter(start.clone()), start
    optimiser, gathered = CayleySGD([rotation], 0.01, 0.5), torch.zeros(5, 5, dtype=torch.float64)
    for gradient in gradients:
        rotation.grad = gradient
        optimiser.step()
        gathered = 0.5 * gathered + tangent(expected, gradient)
        expected = expected @ cayley(-0.01 * gathered)
    assert float((rotation.detach() - expected).abs().max()) <= 3 * of_step(gathered)
    assert torch.equal(optimiser.state[rotation]["momentum"], -optimiser.state[rotation]["momentum"].T)


def test_what_has_no_gradient_stays() -> None:
    one, other = (torch.nn.Parameter(orthogonal(4, 0)) for _ in range(2))
    one.grad = torch.zeros(4, 4, dtype=torch.float64)
    CayleySGD([one, other], 1.0, 0.9).step()
    assert torch.equal(one, other) and torch.equal(one, orthogonal(4, 0))


@pytest.mark.parametrize("size", [1, 2, 31, 256])
def test_the_polar_factor_is_orthogonal_whatever_it_is_of(size: int) -> None:
    for noise in (0.0, 1e-3, 1.0):
        assert residual(polar(orthogonal(size, 0) + noise * drawn(size, 1))) < 1e-12


@given(st.integers(1, 9), st.integers(0, 99))
def test_the_polar_factor_is_the_nearest_orthogonal_matrix(size: int, seed: int) -> None:
    matrix = drawn(size, seed)
    nearest = float((polar(matrix) - matrix).norm())
    others = [orthogonal(size, seed + n) for n in range(20)]
    # And those around it.
    others += [polar(matrix) @ cayley(0.01 * skew(size, seed + n)) for n in range(20)]
    assert all(nearest <= float((other - matrix).norm()) * (1 + 64 * size * UNIT) for other in others)
