"""Descent over orthogonal matrices: steps along the group itself, in closed form, so that none leaves it.

A matrix R goes on to R C(-a A), where A = (R^T G - G^T R) / 2 is the skew part of the gradient G = dL/dR seen from R, the
steepest ascent among the directions R A that the group has there, and C(B) = (I - B / 2)^-1 (I + B / 2) is Cayley's
transform, which takes skew matrices to rotations and agrees with the exponential up to the second order.

Published codes approximate C by five fixed-point iterations in float32, which drift off the group. One solve in float64 costs
about as many products of matrices, converges for every step, and keeps R orthogonal up to float64's rounding, so matrices
are kept in float64 here. They are few beside the weights that they are multiplied into.

Sources: Li, Fuxin, Todorovic, Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform (2020); Liu
et al., SpinQuant (2024).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def tangent(rotation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The skew matrix A, [n, n], such that the derivative of the loss along R B, for every skew B, is <A, B>.

    Args:
        rotation: R, orthogonal [n, n].
        gradient: dL/dR, [n, n].
    """
    along = rotation.T @ gradient
    skew: torch.Tensor = (along - along.T) / 2
    return skew


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """(I - B / 2)^-1 (I + B / 2) of a skew matrix B [n, n]: a rotation."""
    half, identity = skew / 2, torch.eye(len(skew), dtype=skew.dtype)
    rotation: torch.Tensor = torch.linalg.solve(identity - half, identity + half)
    return rotation


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix nearest to a matrix [n, n] in the Euclidean norm: U V^T of its singular value decomposition."""
    left, _, right = torch.linalg.svd(matrix)
    nearest: torch.Tensor = left @ right
    return nearest


class CayleySGD(torch.optim.Optimizer):
    """Gradient descent over orthogonal matrices.

    The rate of a step is at most 1 / max_j sum_i |A_ij|, so that no step turns further than the transform is near to the
    exponential. With momentum m, A is replaced by B <- m B + A: skew matrices seen from R stay skew wherever R is, so what
    was gathered at one R serves at the next one.

    Args:
        rotations: orthogonal matrices, float64 [n, n].
        lr: the rate.
        momentum: m, from 0 to below 1.
    """

    def __init__(self, rotations: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.0) -> None:
        super().__init__(rotations, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step by the gradients that the matrices have, which a step does not compute anew."""
        for group in self.param_groups:
            for rotation in group["params"]:
                if rotation.grad is None:
                    continue
                skew = tangent(rotation, rotation.grad)
                if group["momentum"]:
                    state = self.state[rotation]
                    skew = state["momentum"] = skew + group["momentum"] * state.get("momentum", torch.zeros_like(skew))
                largest = float(skew.abs().sum(0).amax())
                rate = min(group["lr"], 1 / largest) if largest else 0.0
                rotation.copy_(rotation @ cayley(-rate * skew))
