"""Generation programs added beside the whole-sequence forward."""

from __future__ import annotations

from typing import ClassVar

from planish.ir.module import Module
from planish.passes.derive.check import split_faults
from planish.passes.derive.programs import derive
from planish.passes.pass_base import Context, Pass, PassResult


class DerivePrograms(Pass):
    """Derive `prefill`, `extend` and `decode` from a causal `function(tokens i64[B, S], padding bool[B, S])`.

    `prefill(tokens [B, S], length [B])` reads first tokens and returns the last real token's result; `extend(tokens
    [B, S], start [B], length [B])` reads further tokens and returns all results; `decode(tokens [B, 1], start [B])`
    reads one. Keys and values live in states [B, C, heads, size]. Whatever mixes positions other than by a described
    mask stands in the way, and all of it is named in one error. The result is held to the law that a sequence read in
    pieces gives what it gives when read whole.
    """

    name: ClassVar[str] = "derive-programs"
    adds_functions: ClassVar[bool] = True
    function: str = "forward"
    tokens: str = "input_ids"
    padding: str = "attention_mask"

    def apply(self, module: Module, context: Context) -> PassResult:
        derived = derive(module, self.function, self.tokens, self.padding)
        return PassResult(derived, len(derived.functions) - len(module.functions))

    def ensures(self, before: Module, after: Module, context: Context) -> tuple[str, ...]:
        return split_faults(after, self.function, self.tokens, self.padding, context.seed)
