"""Weights on grids of few levels, a scale to a group, with int8 activations in front of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense, Grouped, GroupedInt, Levels
from planish.ir.errors import InputError
from planish.ir.module import Function, Module, ParamRef
from planish.ir.ops import Linear, QuantizeActivation, QuantizedLinear
from planish.ir.params import Computed, Param, Storage
from planish.passes.contract import Contract, Lossy
from planish.passes.pass_base import Context, Pass, PassResult
from planish.passes.roles import roles
from planish.passes.scale_search import encode_searched

Format = Literal[1, 2, 3, 4, 5, 6, 7, 8, "sign", "ternary", "ternary2", "stretched"]
SCALES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class QuantizeWeights(Pass):
    """Put the weights of linear maps, embeddings and output heads on grids of few levels.

    `linear`, `embedding` and `head` are the format of each role: bits of symmetric integers, or a grid of
    `ir.encodings.levels` by name; a role set to null keeps its encoding. A parameter in two roles (tied embeddings)
    needs the same format in both. `group` elements share a scale, or a whole "row" does; with `zero_points` integers
    also have one zero point to a group. `method` is "rtn", rounding to nearest with the scale that the encoding states,
    or "mse", rounding with the scale among fractions of that one that leaves the smallest squared error in the group.
    `ignore` holds regular expressions; a parameter whose name matches one is left alone. With `activations` = "int8"
    the input of a quantised linear map is quantised per row at run time, so that the product is summed in integers;
    with null the weights are decoded instead.

    Source of the grids: `ir.encodings`; of the search for scales: the clipping of SpinQuant (Liu et al., 2024).
    """

    name: ClassVar[str] = "quantize-weights"
    linear: Format | None = 4
    embedding: Format | None = 4
    head: Format | None = 4
    group: int | Literal["row"] = 32
    zero_points: bool = False
    method: Literal["rtn", "mse"] = "rtn"
    scales: Literal["float16", "bfloat16", "float32"] = "float16"
    activations: Literal["int8"] | None = "int8"
    ignore: tuple[str, ...] = ()
    metric: Literal["kl_divergence", "relative_error"] = "kl_divergence"
    budget: float = 0.25

    @property
    def contract(self) -> Contract:
        return Lossy(self.metric, self.budget)

    def apply(self, module: Module, context: Context) -> PassResult:
        encodings = self._choose(module)
        if not encodings:
            return PassResult(module, 0)
        params = [_quantized(module.params[name], encoding, self.method) for name, encoding in encodings.items()]
        result = module.with_params(params)
        for function in module.functions.values():
            if self.activations is not None:
                result = result.with_function(_quantize_inputs(function, encodings.keys()))
        saved = sum(module.params[p.name].nbytes - p.nbytes for p in params)
        return PassResult(result, len(params), details={"bytes saved": saved})

    def _choose(self, module: Module) -> dict[str, Grouped]:
        """The encoding of each parameter to quantise; raises InputError when roles or group sizes disagree."""
        ignored = [re.compile(pattern) for pattern in self.ignore]
        wanted = {"linear": self.linear, "embedding": self.embedding, "head": self.head}
        chosen = {}
        for name, found in roles(module).items():
            formats = {wanted[role] for role in found}
            param = module.params[name]
            if (
                any(pattern.search(name) for pattern in ignored)
                or not isinstance(param.encoding, Dense)
                or formats == {None}
            ):
                continue
            if len(formats) > 1:
                asked = ", ".join(f"{role}: {wanted[role]}" for role in sorted(found))
                raise InputError(
                    f"parameter {name!r} is shared by {' and '.join(sorted(found))}, which ask for different formats "
                    f"({asked}); give these roles the same one or add {name!r} to `ignore`"
                )
            encoding = self._encoding(next(f for f in formats if f is not None), param)
            encoding.layout(param.type)
            chosen[name] = encoding
        return chosen

    def _encoding(self, format: Format, param: Param) -> Grouped:
        group, scales = int(param.type.shape[-1]) if self.group == "row" else self.group, SCALES[self.scales]
        if isinstance(format, int):
            return GroupedInt(format, group, scales, self.zero_points)
        if self.zero_points:
            raise InputError(
                f"zero points go with integers, not with the grid {format!r} that {param.name!r} is to have"
            )
        return Levels(format, group, scales)


@dataclass(frozen=True)
class _Rounded:
    """Encodes a parameter each time it is read, so that a whole model is never held twice."""

    source: Param
    encoding: Grouped
    method: str

    def __call__(self) -> Storage:
        value = self.source.value()
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"parameter {self.source.name!r} holds NaN or infinity and cannot be quantised; repair it first"
            )
        return self.encoding.encode(value) if self.method == "rtn" else encode_searched(self.encoding, value)


def _quantized(param: Param, encoding: Grouped, method: str) -> Param:
    return Param(param.name, param.type, encoding, Computed(_Rounded(param, encoding, method)))


def _quantize_inputs(function: Function, names: object) -> Function:
    """Every linear map on one of the named weights, with its input quantised; inputs that are shared once."""
    copy = Rewriter(function)
    quantized: dict[object, tuple[object, object]] = {}
    for node in function.nodes:
        weight = node.inputs[1] if isinstance(node.op, Linear) else None
        if not isinstance(weight, ParamRef) or weight.name not in names:  # type: ignore[operator]
            copy.keep(node)
            continue
        x, _, bias = copy.operands(node)
        assert x is not None
        if x not in quantized:
            quantized[x] = copy.node(QuantizeActivation(), x, source=node.source).outputs  # type: ignore[assignment]
        codes, scale = quantized[x]
        copy.replace(node.output, copy.emit(QuantizedLinear(), codes, scale, weight, bias, source=node.source))  # type: ignore[arg-type]
    return copy.finish_like()
