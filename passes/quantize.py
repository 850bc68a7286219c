"""Weights on grids of few levels, chosen by rules over names and kinds, rounded to nearest or on calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from planish.ir.encodings import Encoding, Float8, Grouped, NvFp4
from planish.ir.errors import InputError
from planish.ir.module import Module
from planish.ir.params import Computed, Param, Storage
from planish.ir.structural_hash import content_hash
from planish.passes.bit_allocation import allocate
from planish.passes.contract import Contract, Lossy
from planish.passes.network_gptq import FUNCTION, round_network, stages
from planish.passes.pass_base import Context, Pass, PassResult
from planish.passes.scale_search import encode_searched
from planish.passes.selection import Choice, Method, Rule, select
from planish.passes.weight_format import Format, Group, ScaleName, encoding_of


class Quantize(Pass):
    """Put the weights of linear maps, embeddings and output heads on grids of few levels.

    `format` is bits of symmetric integers, or a grid by name (`passes.weight_format`); null quantises only what a rule asks
    for. `group` elements share a scale, or a whole "row" does; with `zero_points` integers also have one zero point to a
    group. `rules` are exceptions (`passes.selection.Rule`), of which the first that fits a weight counts.

    `method` is "rtn", rounding to nearest with the scale that the encoding states; "mse", rounding with the scale among
    fractions of that one that leaves the smallest squared error in the group (for NVFP4 its "four over six"); or "gptq",
    which rounds on the calibration data that come with the context, each weight on what its inputs are once the weights
    in front of it are rounded. `damping` is added to the diagonal of its Hessians, as a part of the diagonal's mean;
    `refine` is how often scales are fitted again to the codes, and the codes to them (0 for GPTQ as published); with
    `follow` each weight is to give what the original network gives there, not what it would give itself on its new
    inputs (this runs the original beside the rounded network).

    With `average_bits`, scales included, each weight that has no format of its own by a rule gets the one out of `choices`
    with which the whole loses least on the calibration data (see `passes.bit_allocation`).

    Sources of the methods: `passes.scale_search`, `passes.gptq`; of the grids: `ir.encodings`.
    """

    name: ClassVar[str] = "quantize"
    format: Format | None = 4
    group: Group = 32
    zero_points: bool = False
    scales: ScaleName = "float16"
    method: Method = "rtn"
    rules: tuple[Rule, ...] = ()
    damping: float = Field(default=0.01, ge=0)
    refine: int = Field(default=1, ge=0)
    follow: bool = True
    average_bits: float | None = Field(default=None, gt=0)
    choices: tuple[Format, ...] = (2, 3, 4, 5, 6, 8)
    metric: Literal["kl_divergence", "relative_error"] = "kl_divergence"
    budget: float = 0.25

    @property
    def contract(self) -> Contract:
        return Lossy(self.metric, self.budget)

    def apply(self, module: Module, context: Context) -> PassResult:
        chosen, idle = select(module, self.rules, self._choose)
        if not chosen:
            return PassResult(module, 0, refusals=idle)
        if self.average_bits is not None:
            chosen = self._allocated(module, chosen, context)
        encodings = {name: _encoding(module.params[name], choice) for name, choice in chosen.items()}
        calibrated = {name: encoding for name, encoding in encodings.items() if chosen[name].method == "gptq"}
        notes = [*idle]
        unseen: list[str] = []
        if calibrated:
            if context.calibration is None:
                raise InputError(
                    f"the method 'gptq' of pass {self.name!r} needs calibration data, and there are none; give some "
                    f"(`compress(..., calibration=...)`, `planish compile --calibration FILE`), or choose 'mse'"
                )
            _, unseen = stages(module.functions[FUNCTION], calibrated)
            notes += [
                f"{name} is read by no linear map first: rounded without calibration, as 'mse' does" for name in unseen
            ]
            calibrated = {name: e for name, e in calibrated.items() if name not in unseen}
        plain = [
            lazily(module.params[name], encoding, "mse" if name in unseen else chosen[name].method)
            for name, encoding in encodings.items()
            if name not in calibrated
        ]
        result = module.with_params(plain)
        details: dict[str, str | int | float] = {}
        if calibrated:
            assert context.calibration is not None
            outcome = round_network(
                result,
                calibrated,
                context.calibration,
                original=module if self.follow else None,
                damping=self.damping,
                refine=self.refine,
                made_of=lambda: {"model": content_hash(module, FUNCTION), "options": repr(self.options())},
                progress=context.progress,
            )
            result = result.with_params(outcome.params)
            notes += outcome.notes
            details["mean squared error"] = sum(outcome.losses.values()) / len(outcome.losses)
            if outcome.resumed:
                details["resumed"] = outcome.resumed
        changed = [result.params[name] for name in encodings]
        details["bytes saved"] = sum(module.params[p.name].nbytes - p.nbytes for p in changed)
        details["bits per weight"] = 8 * sum(p.nbytes for p in changed) / sum(p.elements for p in changed)
        return PassResult(result, len(changed), refusals=tuple(notes), details=details)

    def encodings(self, module: Module) -> dict[str, tuple[Encoding, Method]]:
        """What each weight is to be held in and by which method, by name; not what `average_bits` would allocate."""
        chosen, _ = select(module, self.rules, self._choose)
        return {name: (_encoding(module.params[name], choice), choice.method) for name, choice in chosen.items()}

    def _choose(self, rule: Rule | None) -> Choice | None:
        """What a rule means; with None, what is done where no rule fits."""
        format = self.format if rule is None else rule.format
        if format is None:
            return None
        general = self._choice(format)
        return general if rule is None else replace(general, **rule.given(), ruled=True)

    def _choice(self, format: Format) -> Choice:
        return Choice(format, self.group, self.zero_points, self.scales, self.method)

    def _allocated(self, module: Module, chosen: Mapping[str, Choice], context: Context) -> dict[str, Choice]:
        """The choices with the formats of those that no rule set replaced by allocated ones."""
        if context.calibration is None:
            raise InputError(
                f"the option 'average_bits' of pass {self.name!r} measures on calibration data, and there are none; "
                f"give some, or set formats by rules"
            )
        free = [name for name, choice in chosen.items() if not choice.ruled]
        offers = {
            name: {format: _encoding(module.params[name], self._choice(format)) for format in self.choices}
            for name in free
        }
        assert self.average_bits is not None
        formats = allocate(
            module, offers, self.average_bits, context.calibration.batches, self.metric, context.progress
        )
        return {**chosen, **{name: self._choice(format) for name, format in formats.items()}}


def _encoding(param: Param, choice: Choice) -> Encoding:
    """Raises InputError for a method that the format does not go with."""
    encoding = encoding_of(param, choice.format, choice.group, choice.scales, choice.zero_points)
    if choice.method == "gptq" and isinstance(encoding, Float8):
        raise InputError(
            f"the method 'gptq' goes with groups of columns that share a scale, not with {encoding} for {param.name!r}; "
            f"choose 'rtn' for it"
        )
    if choice.method == "gptq" and choice.scales == "int8":
        raise InputError(
            f"the method 'gptq' fits scales a group at a time, and scales of int8 for {param.name!r} hang together in "
            f"blocks; choose scales of float16 for it"
        )
    if choice.method == "mse" and not isinstance(encoding, (Grouped, NvFp4)):
        raise InputError(f"the method 'mse' has no search for {encoding} of {param.name!r}; choose 'rtn' for it")
    return encoding


@dataclass(frozen=True)
class _Rounded:
    """Encodes a parameter each time it is read, so that a whole model is never held twice."""

    source: Param
    encoding: Encoding
    method: str

    def __call__(self) -> Storage:
        value = self.source.value()
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"parameter {self.source.name!r} holds NaN or infinity and cannot be quantised; repair it first"
            )
        return encoded(value, self.encoding, self.method)


def encoded(value: torch.Tensor, encoding: Encoding, method: str) -> Storage:
    """What is stored of a weight that is rounded by "rtn" or "mse"."""
    if method == "mse" and isinstance(encoding, Grouped):
        return encode_searched(encoding, value)
    if method == "mse" and isinstance(encoding, NvFp4):
        return encoding.encode_four_over_six(value)
    return encoding.encode(value)


def lazily(param: Param, encoding: Encoding, method: str) -> Param:
    """A parameter in an encoding, rounded by "rtn" or "mse" each time it is read."""
    return Param(param.name, param.type, encoding, Computed(_Rounded(param, encoding, method)))
