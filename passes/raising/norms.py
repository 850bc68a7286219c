"""Normalisations --> `layer_norm` and `rms_norm`, whole or spelt out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.ir.op import Chooser
from planish.ir.ops import LayerNorm, RmsNorm
from planish.passes.graph import Graph
from planish.passes.patterns import OneOf, call, op
from planish.passes.raising.draws import choose_shape, small_integers
from planish.passes.rewrite import Match, Rule, pattern_rule


def _draw(choose: Chooser) -> dict[str, Any]:
    size = choose.integer(2, 6)
    return {"x": choose_shape(choose, size), "weight": small_integers(choose, size), "eps": choose.choice([1e-5, 0.01])}


def _draw_whole(choose: Chooser) -> Mapping[str, Any]:
    drawn = _draw(choose)
    size = drawn["x"].shape[-1]
    return {**drawn, "shape": (size,), "bias": small_integers(choose, size), "cudnn": choose.boolean()}


def _last_axis_only(match: Match, graph: Graph) -> str | None:
    axes = len(match["shape"])
    return None if axes == 1 else f"it normalises over the last {axes} axes, not over the last one"


LAYER_NORM = pattern_rule(
    "layer norm",
    # The last argument picks a kernel of torch's and has no meaning.
    lambda x, weight, bias, *, shape, eps, cudnn: call(
        "layer_norm.default", x, shape, OneOf((weight, None)), OneOf((bias, None)), eps, cudnn
    ),
    lambda to, match: to.emit(
        LayerNorm(match["eps"]), match["x"], match.captures.get("weight"), match.captures.get("bias")
    ),
    _draw_whole,
    _last_axis_only,
)


def _has_eps(match: Match, graph: Graph) -> str | None:
    if match["eps"] is None:
        return "its epsilon depends on the dtype"
    return _last_axis_only(match, graph)


def _draw_rms(choose: Chooser) -> Mapping[str, Any]:
    drawn = _draw_whole(choose)
    return {key: drawn[key] for key in ("x", "weight", "shape", "eps")}


RMS_NORM = pattern_rule(
    "rms norm",
    lambda x, weight, *, shape, eps: call("rms_norm.default", x, shape, OneOf((weight, None)), eps),
    lambda to, match: to.emit(RmsNorm(match["eps"]), match["x"], match.captures.get("weight")),
    _draw_rms,
    _has_eps,
)


def _normed(x: Any, eps: Any) -> Any:
    """x * rsqrt(mean(x^2) + eps), and the division by a root that some models write."""
    square = OneOf((call("pow.Tensor_Scalar", x, 2), call("mul.Tensor", x, x), call("square.default", x)))
    mean = call("mean.dim", square, (-1,), True)
    shifted = OneOf((call("add.Tensor", mean, eps), call("add.Scalar", mean, eps)))
    roots = OneOf((call("rsqrt.default", shifted), call("pow.Tensor_Scalar", shifted, -0.5)))
    return OneOf((call("mul.Tensor", x, roots), call("div.Tensor", x, call("sqrt.default", shifted))))


SPELT_RMS_NORM = pattern_rule(
    "rms norm spelt out",
    lambda x, *, eps: _normed(x, eps),
    lambda to, match: to.emit(RmsNorm(match["eps"]), match["x"], None),
    lambda choose: {key: value for key, value in _draw(choose).items() if key != "weight"},
    lambda match, graph: None if isinstance(match["eps"], float) else "its epsilon is a tensor",
)


def _gain_fits(match: Match, graph: Graph) -> str | None:
    gain, x = match["gain"].type, match["x"].type
    fits = gain.rank == 1 and gain.shape == x.shape[-1:] and gain.dtype == x.dtype
    return None if fits else f"the factor {gain} is no gain over the last axis of {x}"


def _with_gain(x: Any, gain: Any, *, eps: Any) -> Any:
    return call("mul.Tensor", op(RmsNorm, x, None, eps=eps), gain)


GAIN = pattern_rule(
    "gain of an rms norm",
    _with_gain,
    lambda to, match: to.emit(RmsNorm(match["eps"]), match["x"], match["gain"]),
    lambda choose: {("gain" if k == "weight" else k): v for k, v in _draw(choose).items()},
    _gain_fits,
)

RULES: tuple[Rule, ...] = (LAYER_NORM, RMS_NORM, SPELT_RMS_NORM, GAIN)
