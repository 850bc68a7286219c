"""A pass made of others, one after the other."""

from __future__ import annotations

from planish.ir.module import Module
from planish.passes.pass_base import Correspondence, PassResult
from planish.passes.rewrite import compose


class Sequel:
    """The module after some steps, and which values of the first one it still holds."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.correspondence: dict[str, Correspondence] = {
            name: {v: v for v in function.values} for name, function in module.functions.items()
        }

    def then(self, result: PassResult) -> PassResult:
        """Take over the result of a step on the module as it is; returns it."""
        for name, function in result.module.functions.items():
            values = set(function.values)
            # A step that records nothing shares the values that it keeps.
            step = result.correspondence.get(name) or {v: v for v in self.module.functions[name].values if v in values}
            self.correspondence[name] = compose(self.correspondence[name], step)
        self.module = result.module
        return result
