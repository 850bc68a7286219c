"""Dead code: nodes whose results nothing reads, and parameters and states that no function uses."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from planish.ir.module import Module, ParamRef, StateRef
from planish.passes.pass_base import Context, Pass, PassResult


class DeadCode(Pass):
    """Removes nodes on which no output and no state depends, then parameters and states that nothing mentions.

    before: a = f(x); b = g(x); return a      after: a = f(x); return a

    Operations have no side effects, so this never changes what a function computes. Inputs are kept, read or not.
    """

    name: ClassVar[str] = "dead-code"

    def apply(self, module: Module, context: Context) -> PassResult:
        functions = {}
        removed = {"nodes": 0, "parameters": 0, "states": 0}
        for name, function in module.functions.items():
            live = function.live_nodes()
            removed["nodes"] += len(function.nodes) - len(live)
            functions[name] = function if len(live) == len(function.nodes) else replace(function, nodes=live)
        references = [r for f in functions.values() for r in f.references()]
        params = {r.name for r in references if isinstance(r, ParamRef)}
        states = {r.name for r in references if isinstance(r, StateRef)} | {
            u for f in functions.values() for u in f.updates
        }
        removed["parameters"] = len(module.params.keys() - params)
        removed["states"] = len(module.states.keys() - states)
        if not any(removed.values()):
            return PassResult(module, 0)
        result = replace(
            module,
            functions=functions,
            params={n: p for n, p in module.params.items() if n in params},
            states={n: s for n, s in module.states.items() if n in states},
        )
        return PassResult(result, sum(removed.values()), details=removed)
