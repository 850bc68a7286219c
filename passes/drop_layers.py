"""Whole layers, taken out of a network: chosen by number, or those that change least what goes through them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from planish.ir.builder import Rewriter
from planish.ir.errors import InputError
from planish.ir.interpret import Interpreter
from planish.ir.module import Function, Module, Node, ParamRef, Value
from planish.passes.calibration.data import Calibration
from planish.passes.contract import Contract, Lossy
from planish.passes.layers import Layer, find_layers
from planish.passes.pass_base import Context, Pass, PassResult

FUNCTION = "forward"


class DropLayers(Pass):
    """Takes layers out of `forward`: what goes into one comes out of it.

    before: x1 = layer0(x0), x2 = layer1(x1), x3 = layer2(x2)
    after:  x1 = layer0(x0), x3 = layer2(x1)

    Layers are the parts of the function that repeat (`passes.layers`), a block of attention with its MLP for example; no name
    is read. Parameters that nothing reads any more go with them.

    Attributes:
        layers: the numbers of those that go, from 0.
        count: how many go instead, those with the least influence: one less the mean cosine between a token on its way in and
            on its way out, on the calibration data.
        metric, budget: what may be lost.

    Source of the influence: Men et al., ShortGPT (2024).
    """

    name: ClassVar[str] = "drop-layers"
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    count: int = Field(default=0, ge=0)
    metric: Literal["kl_divergence", "relative_error"] = "kl_divergence"
    budget: float = 1.0

    @property
    def contract(self) -> Contract:
        return Lossy(self.metric, self.budget)

    def apply(self, module: Module, context: Context) -> PassResult:
        if not self.layers and not self.count:
            return PassResult(module, 0)
        if self.layers and self.count:
            raise InputError(f"{self.name}: give the `layers` that go, or how many by `count`, not both")
        if set(module.functions) != {FUNCTION}:
            raise InputError(
                f"{self.name}: the module has {', '.join(sorted(module.functions))}; drop layers before programs are derived"
            )
        function = module.functions[FUNCTION]
        found = find_layers(function)
        beyond = [number for number in self.layers if number >= len(found)]
        if beyond or self.count > len(found):
            what = f"there is no layer {beyond[0]}" if beyond else f"{self.count} layers cannot go"
            raise InputError(f"{self.name}: {what}: {len(found)} parts of {FUNCTION!r} repeat and count as layers")
        details: dict[str, str | int | float] = {"layers": len(found)}
        numbers = set(self.layers)
        if self.count:
            influences = self._influences(module, found, context)
            numbers = {int(n) for n in influences.argsort(stable=True)[: self.count]}
            details["influence dropped"] = float(influences[sorted(numbers)].sum())
            details["influence of all"] = float(influences.sum())
        if len(numbers) == len(found):
            raise InputError(f"{self.name}: all {len(found)} layers would go; keep one at least")
        result = _without(function, [found[number] for number in sorted(numbers)])
        read = {r.name for r in result.references() if isinstance(r, ParamRef)}
        params = {name: param for name, param in module.params.items() if name in read}
        details["dropped"] = ", ".join(str(number) for number in sorted(numbers))
        return PassResult(Module({FUNCTION: result}, params, {}, module.metadata), len(numbers), details=details)

    def _influences(self, module: Module, layers: tuple[Layer, ...], context: Context) -> torch.Tensor:
        if context.calibration is None:
            raise InputError(
                f"pass {self.name!r} with `count` needs calibration data, and there are none; give some "
                f"(`compress(..., calibration=...)`, `planish compile --calibration FILE`), or name the `layers`"
            )
        return influences(module, layers, context.calibration)


def influences(module: Module, layers: tuple[Layer, ...], calibration: Calibration) -> torch.Tensor:
    """How much each layer changes the rows that go through it, float64 [layers]: one less the mean cosine of a row before
    and after. One batch is in memory at a time."""
    before: dict[Value, torch.Tensor] = {}
    turned, rows = torch.zeros(len(layers), dtype=torch.float64), torch.zeros(len(layers), dtype=torch.float64)
    starts = {layer.start for layer in layers}
    ends = {layer.end: number for number, layer in enumerate(layers)}

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        for value, after in zip(node.outputs, results):
            if value in ends:
                number = ends[value]
                cosine = torch.cosine_similarity(before.pop(layers[number].start).double(), after.double(), -1)
                turned[number] += (1 - cosine).sum()
                rows[number] += cosine.numel()
            if value in starts:
                before[value] = after

    for batch in calibration.batches:
        given = {value: batch[value.name] for value in module.functions[FUNCTION].inputs if value in starts}
        before.update(given)
        with torch.no_grad():
            Interpreter(module, observe=observe).run(FUNCTION, batch)
    return turned / rows


def _without(function: Function, layers: list[Layer]) -> Function:
    """The function in which what goes into layers comes out of them."""
    copy, skipped = Rewriter(function), {layer.end: layer.start for layer in layers}
    for node in function.nodes:
        copy.keep(node)
        for value in node.outputs:
            if value in skipped:
                copy.replace(value, copy.operand(skipped[value]), same=False)
    whole = copy.finish_like()
    return Function(whole.name, whole.inputs, whole.live_nodes(), whole.outputs, whole.output_names, whole.updates)
