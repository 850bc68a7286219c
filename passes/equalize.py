"""Scales that even out how large the indices of a space are in its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field

from planish.ir.encodings import Dense
from planish.ir.module import Module, Value
from planish.ir.spaces.action import act, largest
from planish.ir.spaces.analysis import Space, Spaces, Tensor, find_spaces
from planish.ir.spaces.terms import Term
from planish.passes.param_changes import Change, changed
from planish.passes.pass_base import Carried, Context, Correspondence, Pass, PassResult


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one space wants: for each tensor that changes, the exponents of two of its indices, int64 [n]."""

    space: Space
    exponents: Mapping[Tensor, torch.Tensor]
    before: float
    after: float


class Equalize(Pass):
    """Multiplies indices of spaces by powers of two, so that within each parameter they are as alike in size as can be.

    before: silu(x @ gate) * (x @ up) @ down
    after:  silu(x @ gate) * (x @ up S) @ (S^-1 down)

    Which scales there are follows from the laws of the operations (`find_spaces`): of the values of heads, of what a gate is
    multiplied with, of the hidden layer behind a rectifier (with its square, S^-2), of gains of norms and the maps behind
    them. An index's size in a parameter is its largest absolute value. In each space the deviations of their logarithms from
    the parameter's mean become least in the sum of squares; a matrix has two spaces, so a second application may find more.
    Powers of two lose nothing: results keep their bits, unless a number leaves the range of its dtype.

    Attributes:
        limit: the largest power by which an index of a parameter is multiplied or divided, as an exponent of two.

    Source of the method: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019).
    """

    name: ClassVar[str] = "equalize"
    limit: int = Field(default=8, ge=1, le=64)

    def apply(self, module: Module, context: Context) -> PassResult:
        found = find_spaces(module)
        plans, refusals = list[_Plan](), list[str]()
        changes: dict[str, list[Change]] = {}
        for space in found.spaces:
            if not isinstance(space.size, int) or space.size < 2 or not space.scales:
                continue
            plan = self._plan(module, found, space, changes)
            if isinstance(plan, str):
                refusals.append(plan)
            if not isinstance(plan, _Plan):
                continue
            plans.append(plan)
            for tensor, exponents in plan.exponents.items():
                if isinstance(tensor, tuple) and tensor[0] == "param":
                    change = _change(found, space, tensor, exponents)
                    changes.setdefault(tensor[1], []).append(change)
        if not plans:
            return PassResult(module, 0, refusals=tuple(dict.fromkeys(refusals)))
        params = [changed(module.params[name], name, tuple(of)) for name, of in changes.items()]
        scaled = {tensor for plan in plans for tensor in plan.exponents}
        correspondence: dict[str, Correspondence] = {}
        carried: dict[str, dict[Value, Carried]] = {}
        for name, function in module.functions.items():
            correspondence[name] = {v: v for v in function.values if v not in scaled}
            carried[name] = {v: _carried(found, plans, v) for v in function.values if v in scaled}
        spread = {
            f"octaves of spread {when}": round(sum(getattr(p, when) for p in plans) / len(plans), 3)
            for when in ("before", "after")
        }
        return PassResult(
            module.with_params(params), len(plans), correspondence, tuple(dict.fromkeys(refusals)),
            {"spaces equalised": len(plans), "parameters scaled": len(params), **spread}, carried=carried,
        )  # fmt: skip

    def _plan(
        self, module: Module, spaces: Spaces, space: Space, changes: Mapping[str, Sequence[Change]]
    ) -> _Plan | str | None:
        """What a space wants after some changes; a sentence where it cannot have it, None where there is nothing to gain."""
        scalings = space.scalings()
        names = _measured(module, space, scalings)
        if len(names) < 2:
            return None
        encoded = next((n for n in names if not isinstance(module.params[n].encoding, Dense)), None)
        if encoded is not None:
            return f"{encoded} is encoded already: equalise before weights are quantised"
        sizes = []
        for name in names:
            value = module.params[name].wide_value()
            for change in changes.get(name, ()):
                value = change.make(value)
            of_index = largest(value, _terms(spaces, module, name), space.atom)
            if not bool(of_index.isfinite().all()):
                return f"{name} has numbers that are not finite: the space of {space.size} indices stays"
            sizes.append(_deviations(of_index))
        # Rows are parameters, columns independent scales, and each index of the space has its own right side.
        matrix = torch.tensor([[s.get(("param", n), 0) for s in scalings] for n in names], dtype=torch.float64)
        wanted = torch.stack(sizes)
        powers = (-torch.linalg.pinv(matrix) @ wanted).round()
        largest_power = float((matrix @ powers).abs().max())
        if largest_power > self.limit:
            powers = (powers * (self.limit / largest_power)).trunc()
        # Rounded to whole powers, some would make it worse.
        better = (wanted + matrix @ powers).square().sum(0) < wanted.square().sum(0)
        powers = torch.where(better, powers, 0)
        if not bool(powers.any()):
            return None
        exponents: dict[Tensor, torch.Tensor] = {}
        for scaling, power in zip(scalings, powers):
            for tensor, c in scaling.items():
                exponents[tensor] = exponents.get(tensor, 0) + c * power.long()
        exponents = {tensor: of for tensor, of in exponents.items() if bool(of.any())}
        spreads = (float(each.square().mean().sqrt()) for each in (wanted, wanted + matrix @ powers))
        return _Plan(space, exponents, *spreads)


def _measured(module: Module, space: Space, scalings: Sequence[Mapping[Tensor, int]]) -> list[str]:
    """The parameters that are to become even: those that are scaled, but no bias, which goes with the matrix before it."""
    found = []
    for name in dict.fromkeys(name for name, _ in space.parameters):
        of_name = [(scaling, scaling[key]) for scaling in scalings if (key := ("param", name)) in scaling]
        alike = (
            isinstance(tensor, tuple) and tensor[0] == "param" and module.params[tensor[1]].type.rank > 1
            for scaling, c in of_name
            for tensor, other in scaling.items()
            if c * other > 0
        )
        if of_name and (module.params[name].type.rank > 1 or not any(alike)):
            found.append(name)
    return found


def _deviations(sizes: torch.Tensor) -> torch.Tensor:
    """Logarithms to base 2 less their mean; an index that is zero everywhere has the mean."""
    alive = sizes > 0
    logarithms = torch.where(alive, sizes, 1).log2()
    mean = logarithms.sum() / alive.sum().clamp(min=1)
    return torch.where(alive, logarithms - mean, 0)


def _terms(spaces: Spaces, module: Module, name: str) -> list[Term]:
    return [spaces.term(("param", name), axis) for axis in range(module.params[name].type.rank)]


def _change(spaces: Spaces, space: Space, tensor: Tensor, exponents: torch.Tensor) -> Change:
    return Change(("equalise", space.atom), lambda value: _scaled(spaces, space, tensor, exponents, value))


def _scaled(spaces: Spaces, space: Space, tensor: Tensor, exponents: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    powers = torch.ldexp(torch.ones(len(exponents), dtype=value.dtype), exponents)
    return act(value, spaces.terms(tensor), space.atom, powers)


def _carried(spaces: Spaces, plans: Sequence[_Plan], value: Value) -> Carried:
    """What a value becomes: itself times the powers of two of all plans that scale it. Powers of two round nothing."""

    def image(tensor: torch.Tensor) -> torch.Tensor:
        for plan in plans:
            if value in plan.exponents:
                tensor = _scaled(spaces, plan.space, value, plan.exponents[value], tensor)
        return tensor

    return Carried(value, image, image)
