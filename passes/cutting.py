"""Linear maps cut by themselves, where what is dead in one lives in others: they read a gather, and write a scatter."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense
from planish.ir.module import Module, Node, Operand, ParamRef, Value
from planish.ir.ops import Linear, aten
from planish.ir.ops.aten import Slot
from planish.ir.params import Param, dense_param
from planish.passes.param_changes import taken, unused
from planish.passes.pass_base import Correspondence, PassResult

WEIGHT = 1
Live = tuple["torch.Tensor | None", "torch.Tensor | None"]
"""The rows and the columns of a weight that live; None for all."""


@dataclass
class _Cuts:
    """What was cut so far; a weight that several functions read is cut once."""

    module: Module
    least: float
    made: dict[str, Param] = field(default_factory=dict)
    known: dict[tuple[str, object], Live] = field(default_factory=dict)
    refs: dict[tuple[str, str], ParamRef] = field(default_factory=dict)

    def live(self, node: Node) -> Live:
        """What lives of a node's weight, where that is little enough."""
        if not isinstance(node.op, Linear) or not isinstance(node.inputs[WEIGHT], ParamRef):
            return None, None
        _, weight, bias = node.inputs
        assert isinstance(weight, ParamRef)
        if not isinstance(self.module.params[weight.name].encoding, Dense):
            return None, None
        key = (weight.name, bias.name if isinstance(bias, ParamRef) else bias)
        if key not in self.known:
            value = self.module.params[weight.name].wide_value()
            rows, columns = value.count_nonzero(1) > 0, value.count_nonzero(0) > 0
            if isinstance(bias, ParamRef):
                rows |= self.module.params[bias.name].wide_value() != 0
            elif bias is not None:
                rows[:] = True
            self.known[key] = (self._few(rows), self._few(columns))
        return self.known[key]

    def _few(self, live: torch.Tensor) -> torch.Tensor | None:
        dead = int((~live).sum())
        return live.nonzero().flatten() if self.least * len(live) <= dead < len(live) and dead else None

    def taken(self, ref: ParamRef, live: tuple[torch.Tensor | None, ...]) -> ParamRef:
        """What lives of a parameter, as one of its own."""
        return self._add(ref.name, "live", taken(self.module.params[ref.name], live))

    def indices(self, ref: ParamRef, what: str, values: torch.Tensor) -> ParamRef:
        return self._add(ref.name, what, dense_param("", values))

    def _add(self, of: str, what: str, param: Param) -> ParamRef:
        if (of, what) not in self.refs:
            name = unused(f"{of}.{what}", {*self.module.params, *self.made})
            self.made[name] = Param(name, param.type, param.encoding, param.source)
            self.refs[of, what] = ParamRef(name, param.type)
        return self.refs[of, what]


def cut_alone(module: Module, least: float) -> PassResult:
    """Linear maps without their rows and columns of zeros, where these are at least a part `least` of all, above 0.

    before: linear(x, @w)
    after:  index_select(constant_pad_nd(linear(index_select(x, -1, @columns), @live), [0, 1]), -1, @places)
    """
    cuts, functions, same = _Cuts(module, least), dict(module.functions), dict[str, Correspondence]()
    count = 0
    for name, function in module.functions.items():
        copy = Rewriter(function)
        for node in function.nodes:
            live = cuts.live(node)
            if all(indices is None for indices in live):
                copy.keep(node)
            else:
                count += 1
                copy.replace(node.output, _cut(cuts, copy, node, *live))
        functions[name], same[name] = copy.finish_like(), copy.correspondence
    if not count:
        return PassResult(module, 0)
    result = Module(functions, {**module.params, **cuts.made}, module.states, module.metadata)
    return PassResult(result, count, same)


def _cut(cuts: _Cuts, copy: Rewriter, node: Node, rows: torch.Tensor | None, columns: torch.Tensor | None) -> Value:
    x, weight, bias = copy.operands(node)
    assert x is not None and isinstance(weight, ParamRef)
    if columns is not None:
        gather = aten("index_select.default", Slot(0), x.type.rank - 1, Slot(1))
        x = copy.emit(gather, x, cuts.indices(weight, "columns", columns))
    live_bias: Operand | None = bias
    if rows is not None and isinstance(bias, ParamRef):
        live_bias = cuts.taken(bias, (rows,))
    y = copy.emit(Linear(), x, cuts.taken(weight, (rows, columns)), live_bias, source=node.source)
    if rows is None:
        return y
    places = torch.full((int(weight.type.shape[0]),), len(rows))  # type: ignore[call-overload]
    places[rows] = torch.arange(len(rows))
    padded = copy.emit(aten("constant_pad_nd.default", Slot(0), (0, 1), 0.0), y)
    scatter = aten("index_select.default", Slot(0), y.type.rank - 1, Slot(1))
    return copy.emit(scatter, padded, cuts.indices(weight, "places", places), name=node.output.name)
