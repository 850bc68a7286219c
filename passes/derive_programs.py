"""Generation programs added beside the whole-sequence forward."""

from __future__ import annotations

from typing import ClassVar

from planish.ir.module import Module
from planish.passes.derive.check import split_faults
from planish.passes.derive.plan import Inputs
from planish.passes.derive.programs import derive
from planish.passes.pass_base import Context, Pass, PassResult


class DerivePrograms(Pass):
    """Derive `prefill`, `extend` and `decode` from a causal `function(tokens i64[B, S], padding bool[B, S])`.

    `prefill(tokens [B, S], length [B])` reads first tokens and returns the last real token's result; `extend(tokens
    [B, S], start [B], length [B])` reads further tokens and returns all results; `decode(tokens [B, 1], start [B])`
    reads one. Keys and values live in states [B, C, heads, size], one for each tensor that attention reads, however many
    operations share it. Whatever mixes positions other than by a described mask stands in the way, and all of it is named
    in one error. The result is held to the law that a sequence read in pieces gives what it gives when read whole.

    With `source` the function also reads `source i64[B, T]` and `source_padding bool[B, T]`, through an encoder whose
    results it reads as keys and values only. `encode(source [B, T], length [B])` then fills their states once, and the
    other programs take `source_length [B]` last.
    """

    name: ClassVar[str] = "derive-programs"
    adds_functions: ClassVar[bool] = True
    function: str = "forward"
    tokens: str = "input_ids"
    padding: str = "attention_mask"
    source: str | None = None
    source_padding: str | None = None

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.function, self.tokens, self.padding, self.source, self.source_padding)

    def apply(self, module: Module, context: Context) -> PassResult:
        derived = derive(module, self.inputs)
        return PassResult(derived, len(derived.functions) - len(module.functions))

    def ensures(self, before: Module, after: Module, context: Context) -> tuple[str, ...]:
        return split_faults(after, self.inputs, context.seed)
