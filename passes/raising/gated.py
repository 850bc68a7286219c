"""act(gate) * up --> `gated_activation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.ir.op import Chooser
from planish.ir.ops import GatedActivation
from planish.passes.graph import Graph
from planish.passes.patterns import Call, call
from planish.passes.raising.draws import choose_shape
from planish.passes.rewrite import Match, Rule, pattern_rule


def _draw(choose: Chooser) -> Mapping[str, Any]:
    kind = choose_shape(choose, choose.integer(2, 6))
    return {"gate": kind, "up": kind}


def _same_type(match: Match, graph: Graph) -> str | None:
    if match["up"] not in match.operands():
        return "what the activation gates is its own result"
    gate, up = match["gate"].type, match["up"].type
    return None if gate == up else f"gate {gate} and up {up} differ"


def _activated(activation: str, gate: Any) -> Call:
    if activation == "gelu":
        return call("gelu.default", gate)
    if activation == "gelu_tanh":
        return call("gelu.default", gate, approximate="tanh")
    return call(f"{activation}.default", gate)


def _rule(activation: str) -> Rule:
    return pattern_rule(
        f"gated {activation}",
        lambda gate, up: call("mul.Tensor", _activated(activation, gate), up),
        lambda to, match: to.emit(GatedActivation(activation), match["gate"], match["up"]),
        _draw,
        _same_type,
    )


RULES: tuple[Rule, ...] = tuple(_rule(activation) for activation in ("silu", "gelu", "gelu_tanh", "relu"))
