"""Fake quantisation: its values are what encodings decode to, its gradients those of the surrogate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Encoding, GroupedInt, InputError, Levels, NvFp4, TensorType
from planish.passes.training.quantizers import LEAST_ALPHA, Quantizer, quantizer_of, round_straight
from planish.testing.profiles import share

# ParetoQ's table in units of alpha, written down a second time.
THIRD = 2 / 3


@dataclass(frozen=True)
class Row:
    """An encoding for rows of `n` elements in groups, the value q of x, its clip, and P."""

    encoding: Callable[[int, torch.dtype], Encoding]
    q: Callable[[torch.Tensor], torch.Tensor]
    clip: tuple[float, float]
    levels: int = 1
    elastic: bool = False


def _integers(bits: int) -> Row:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return Row(lambda n, d: GroupedInt(bits, n, d), lambda x: x.round().clamp(low, high), (low, high), high)


def _ternary(x: torch.Tensor) -> torch.Tensor:
    return (x * 1.5).round().clamp(-1, 1) * THIRD


TABLE = {
    "sign": Row(lambda n, d: Levels("sign", n, d), lambda x: torch.where(x >= 0, 1.0, -1.0), (-1, 1), elastic=True),
    "ternary": Row(lambda n, d: Levels("ternary", n, d), _ternary, (-0.99, 0.99)),
    "ternary2": Row(lambda n, d: Levels("ternary2", n, d), _ternary, (-0.99, 0.99)),
    "stretched": Row(
        lambda n, d: Levels("stretched", n, d),
        lambda x: (((2 * x).floor() + 0.5) / 2).clamp(-0.75, 0.75),
        (-0.99, 0.99),
    ),
    **{f"int{bits}": _integers(bits) for bits in range(2, 9)},
}
SCALES = [torch.float16, torch.bfloat16, torch.float32]


def quantizer(kind: str, group: int, scales: torch.dtype = torch.float32) -> Quantizer:
    return quantizer_of(TABLE[kind].encoding(group, scales), "w")


@pytest.mark.parametrize(
    "kind, x, q",
    [
        (
            "stretched",
            [-1, -0.51, -0.5, -0.49, -0.01, 0, 0.01, 0.49, 0.5, 0.51, 1],
            [-0.75, -0.75, -0.75, -0.25, -0.25, 0.25, 0.25, 0.25, 0.25, 0.75, 0.75],
        ),
        ("sign", [-3, -1, -1e-9, 0, 1e-9, 0.5, 3], [-1, -1, -1, 1, 1, 1, 1]),
        ("int2", [-3, -2, -1.51, -0.5, 0.5, 0.51, 1.5, 9], [-2, -2, -2, 0, 0, 1, 1, 1]),
        ("int3", [-9, -3.6, -2.5, -1.4, 0, 2.5, 3.4, 9], [-4, -4, -2, -1, 0, 2, 3, 3]),
        ("int4", [-8.4, -7.6, -0.6, 6.4, 7.4, 8], [-8, -8, -1, 6, 7, 7]),
    ],
)
def test_the_grids_by_hand(kind: str, x: list[float], q: list[float]) -> None:
    """With alpha = 2, ties as the encoding has them."""
    made = quantizer(kind, len(x))(2 * torch.tensor([x]), torch.full((1, 1, 1), 2.0))
    assert made.tolist() == [[2 * value for value in q]]


def test_the_ternary_grid_by_hand() -> None:
    """Two thirds of alpha is a power of two, so that the scale is no rounded one."""
    x = torch.tensor([[-1, -0.334, -0.333, 0, 0.333, 0.334, 1]])
    made = quantizer("ternary", 7)(1.5 * x, torch.full((1, 1, 1), 1.5))
    assert made.tolist() == [[-1, -1, 0, 0, 0, 1, 1]]


@st.composite
def weights(draw: st.DrawFn, kind: str) -> tuple[torch.Tensor, torch.Tensor, Quantizer]:
    """A weight of few rows and groups, alphas, and the quantiser."""
    scales = draw(st.sampled_from(SCALES))
    rows, groups, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    made = quantizer(kind, group, scales)
    spread = 10.0 ** draw(st.integers(-3, 2))
    weight = torch.randn(rows, groups * group, generator=generator) * spread
    alpha = made.first_alpha(weight) * (0.2 + torch.rand(rows, groups, 1, generator=generator))
    return weight, alpha, made


@pytest.mark.parametrize("kind", TABLE)
@share(0.3)
@given(st.data())
def test_values_are_what_the_encoding_decodes_to(kind: str, data: st.DataObject) -> None:
    weight, alpha, made = data.draw(weights(kind))
    storage = made.encoding.packed(made.rounded(weight, alpha))
    decoded = made.encoding.decode(storage, TensorType(weight.dtype, tuple(weight.shape)))
    assert torch.equal(made(weight, alpha), decoded)


@pytest.mark.parametrize("kind", TABLE)
@share(0.3)
@given(st.data())
def test_values_follow_the_table_at_the_stored_scale(kind: str, data: st.DataObject) -> None:
    weight, alpha, made = data.draw(weights(kind))
    scales = made.scales(alpha)
    assert scales.dtype == made.encoding.scale_dtype
    used = scales.double() / made.ratio
    x = weight.double().unflatten(-1, (-1, made.encoding.group)) / used
    expected = (TABLE[kind].q(x) * used).flatten(-2)
    # The product is rounded once to float32; the table's thirds and the division by the ratio add a few roundings in float64.
    bound = expected.abs() * (2.0**-24 + 2.0**-49)
    assert bool(((made(weight, alpha).double() - expected).abs() <= bound).all())


H = 2.0**-16


@st.composite
def points(draw: st.DrawFn, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Quantizer]:
    """x = W / alpha away from every kink, the alphas in use, an upstream gradient, and the quantiser.

    x is an odd number of parts in 256: at least 1/800 away from 1/3, 0.99 and all halves.
    """
    rows, groups, group = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    reach = int(384 * max(abs(edge) for edge in TABLE[kind].clip))
    shape = (rows, groups, group)
    odd = st.integers(-reach // 2, reach // 2).map(lambda n: 2 * n + 1)
    x = torch.tensor(draw(st.lists(odd, min_size=math.prod(shape), max_size=math.prod(shape)))).reshape(shape) / 256
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    made = quantizer(kind, group)
    alpha = made.scales(0.5 + torch.rand(rows, groups, 1, generator=generator)).double() / made.ratio
    return x.double(), alpha, torch.randn(shape, generator=generator).double(), made


@pytest.mark.parametrize("kind", TABLE)
@share(0.3)
@given(st.data())
def test_gradients_are_those_of_the_surrogate(kind: str, data: st.DataObject) -> None:
    """By central differences of the surrogate, which is linear in either argument on both sides of each point.

    So a difference is off by rounding alone: a value is at most M = alpha * (3 * reach + 2), made in 8 operations, and is
    divided by H.
    """
    x, alpha, upstream, made = data.draw(points(kind))
    row = TABLE[kind]
    low, high = row.clip
    residual = row.q(x) - x.clamp(low, high)
    weight = x * alpha

    def surrogate(w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return a * ((w / (alpha if row.elastic else a)).clamp(low, high) + residual)

    leaf_w, leaf_a = weight.flatten(-2).requires_grad_(), alpha.clone().requires_grad_()
    made(leaf_w, leaf_a).backward(upstream.flatten(-2))
    assert leaf_w.grad is not None and leaf_a.grad is not None
    by_weight = (surrogate(weight + H, alpha) - surrogate(weight - H, alpha)) / (2 * H)
    by_alpha = (surrogate(weight, alpha + H) - surrogate(weight, alpha - H)) / (2 * H)
    bound = 8 * 2.0**-53 * alpha * (3 * max(-low, high) + 2) / H * upstream.abs()
    assert bool(((leaf_w.grad - (upstream * by_weight).flatten(-2)).abs() <= bound.flatten(-2)).all())
    factor = 1 / math.sqrt(x.numel() * row.levels)
    expected = (upstream * by_alpha).sum(-1, keepdim=True) * factor
    assert bool(((leaf_a.grad - expected).abs() <= bound.sum(-1, keepdim=True) * factor * 2).all())


@pytest.mark.parametrize("kind, slope", [("ternary", THIRD), ("stretched", 0.75), ("sign", 1.0), ("int3", 3.0)])
def test_a_saturated_weight_moves_alpha_alone(kind: str, slope: float) -> None:
    weight, alpha = torch.tensor([[9.0, 9.0]], requires_grad=True), torch.ones(1, 1, 1, requires_grad=True)
    made = quantizer(kind, 2)
    made(weight, alpha).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[0, 0]]
    assert alpha.grad is not None
    assert float(alpha.grad) == pytest.approx(2 * slope / math.sqrt(2 * TABLE[kind].levels), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9])
def test_a_vanishing_alpha_is_clamped_and_can_recover(value: float) -> None:
    weight, alpha = torch.tensor([[1.0, 2.0]]), torch.full((1, 1, 1), value, requires_grad=True)
    made = quantizer("int4", 2)
    seen = made(weight, alpha)
    assert torch.equal(seen, 7 * torch.tensor([[LEAST_ALPHA, LEAST_ALPHA]]))
    seen.sum().backward()
    assert alpha.grad is not None and float(alpha.grad) > 0


def test_the_first_alphas() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.5, 0.0], [0.0, 0.0, -6.0, 2.0]])
    expected = {"sign": [2, 0.25, 0, 4], "ternary": [3, 0.5, 0, 6], "stretched": [3, 0.5, 0, 6]}
    for kind, alphas in expected.items():
        assert quantizer(kind, 2).first_alpha(weight).flatten().tolist() == alphas
    assert quantizer("int3", 2).first_alpha(weight).flatten().tolist() == pytest.approx([1, 1 / 6, 0, 2])
    assert quantizer("int2", 4).first_alpha(weight).flatten().tolist() == [3, 6]


@pytest.mark.parametrize("encoding", [GroupedInt(4, 2, zero_points=True), GroupedInt(1, 2), NvFp4()])
def test_encodings_without_learned_scales_are_refused(encoding: Encoding) -> None:
    with pytest.raises(InputError, match=r"parameter 'w' cannot be trained for .*: learned scales go with signs"):
        quantizer_of(encoding, "w")


def test_scales_of_int8_are_refused() -> None:
    with pytest.raises(
        InputError, match="parameter 'w' cannot be trained for int4g2si8: a learned scale is a number of its own"
    ):
        quantizer_of(GroupedInt(4, 2, torch.int8), "w")


def test_narrow_floats_pass_gradients_straight() -> None:
    x = torch.tensor([1.0 + 2.0**-10, -3.0], requires_grad=True)
    rounded = round_straight(x, torch.bfloat16)
    assert rounded.tolist() == [1.0, -3.0]
    (rounded * torch.tensor([1.0 + 2.0**-20, 5.0])).sum().backward()
    # Not rounded to bfloat16 on the way.
    assert x.grad is not None and x.grad.tolist() == [1.0 + 2.0**-20, 5.0]
