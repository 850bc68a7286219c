"""Activations of 8 bits or fewer, quantised per token at run time, in front of linear maps whose weights have few levels."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from planish.ir.builder import Rewriter
from planish.ir.encodings import Grouped
from planish.ir.errors import InputError
from planish.ir.module import Function, Module, Operand, ParamRef
from planish.ir.ops import Linear, QuantizeActivation, QuantizedLinear
from planish.passes.contract import Contract, Lossy
from planish.passes.pass_base import Context, Pass, PassResult


class QuantizeActivations(Pass):
    """Quantise the inputs of linear maps to integers, one scale to a row (a token), so that products are summed in integers.

    It is done where the weight is encoded in groups of integer levels; a weight whose name holds a match of one of the
    regular expressions `ignore` keeps its float inputs. Maps that share their input share its codes. Codes have `bits` bits,
    2 to 8, and are int8 to the kernels whatever that is: fewer bits say what a processor with products of fewer bits would
    lose, and save no time on one without.

    Source: per-token dynamic quantisation as in `ir.ops.QuantizeActivation`.
    """

    name: ClassVar[str] = "quantize-activations"
    bits: int = Field(default=8, ge=2, le=8)
    ignore: tuple[str, ...] = ()
    metric: Literal["kl_divergence", "relative_error"] = "kl_divergence"
    budget: float = 0.05

    @property
    def contract(self) -> Contract:
        return Lossy(self.metric, self.budget)

    def apply(self, module: Module, context: Context) -> PassResult:
        try:
            ignored = [re.compile(pattern) for pattern in self.ignore]
        except re.error as error:
            raise InputError(f"{error.pattern!r} in `ignore` is no regular expression: {error}") from error
        names = {
            name
            for name, param in module.params.items()
            if isinstance(param.encoding, Grouped) and not any(pattern.search(name) for pattern in ignored)
        }
        result, matches = module, 0
        for function in module.functions.values():
            rewritten, count = _rewrite(function, names, QuantizeActivation(self.bits))
            matches += count
            result = result.with_function(rewritten) if count else result
        return PassResult(result, matches)


def _rewrite(function: Function, names: set[str], op: QuantizeActivation) -> tuple[Function, int]:
    """Every linear map on one of the named weights with its input quantised, and how many there are."""
    copy = Rewriter(function)
    quantized: dict[Operand, tuple[Operand, ...]] = {}
    count = 0
    for node in function.nodes:
        weight = node.inputs[1] if isinstance(node.op, Linear) else None
        if not isinstance(weight, ParamRef) or weight.name not in names:
            copy.keep(node)
            continue
        x, _, bias = copy.operands(node)
        assert x is not None
        if x not in quantized:
            quantized[x] = copy.node(op, x, source=node.source).outputs
        codes, scale = quantized[x]
        product = copy.emit(QuantizedLinear(), codes, scale, weight, bias, source=node.source)
        copy.replace(node.output, product, same=False)
        count += 1
    return copy.finish_like(), count
