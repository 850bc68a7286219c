"""Chosen indices of spaces, taken out of a network: heads, channels, elements of the residual stream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from planish.ir.errors import InputError
from planish.ir.module import Module
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.passes.contract import Contract, Lossy
from planish.passes.dropping import drop, keeps
from planish.passes.index_scores import by_activation, by_magnitude
from planish.passes.pass_base import Context, Pass, PassResult


class Dropping(BaseModel):
    """Which spaces lose indices, and which or how many.

    The spaces are those along axis `axis` of parameters whose name holds a match of the regular expression `match`. An axis
    may be made of several, in order, such as the heads of keys and the elements of a head: `part` says which is meant. Either
    `indices` go, or the `fraction` of them that counts least, rounded down.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    match: str
    axis: int = 0
    part: int = 0
    indices: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    fraction: float | None = Field(default=None, gt=0, lt=1)


@dataclass(frozen=True)
class _Asked:
    """What is asked of a space, and by which parameter it was found."""

    rule: Dropping
    name: str


class DropIndices(Pass):
    """Takes chosen indices out of spaces, everywhere at once: rows and columns of weights, elements of biases and gains,
    heads of attention, states. What is left computes what it did with zeros there.

    before: silu(x @ gate[96, 64]) * (x @ up[96, 64]) @ down[64, 96]
    after:  silu(x @ gate[72, 64]) * (x @ up[72, 64]) @ down[64, 72]

    Softmax scales stay what they were, and norms take their means over as many elements as before. A space that an operation
    reads by position, or where it cannot tell what is missing (a layer norm's mean), is refused with the operation's name.

    Attributes:
        spaces: which, see `Dropping`; a space may be asked for once, or in the same way by several parameters.
        criterion: what counts least: "magnitude" of parameters, or "activation", what is read there on the calibration data.
        align: as many indices stay as make a multiple of it, the best of those that would go among them.
        metric, budget: what may be lost.
    """

    name: ClassVar[str] = "drop-indices"
    spaces: tuple[Dropping, ...] = ()
    criterion: Literal["magnitude", "activation"] = "magnitude"
    align: int = Field(default=1, ge=1)
    metric: Literal["kl_divergence", "relative_error"] = "kl_divergence"
    budget: float = 1.0

    @property
    def contract(self) -> Contract:
        return Lossy(self.metric, self.budget)

    def apply(self, module: Module, context: Context) -> PassResult:
        found = find_spaces(module)
        asked = dict(self._asked(module, found))
        scores = self._scores(module, found, [s for s, a in asked.items() if a.rule.fraction is not None], context)
        staying: dict[Space, torch.Tensor] = {}
        for space, ask in asked.items():
            kept = self._staying(space, ask, scores)
            if not bool(kept.all()):
                staying[space] = kept
        if not staying:
            return PassResult(module, 0)
        result = drop(module, found, {space.atom: kept for space, kept in staying.items()}).module
        gone = sum(int((~kept).sum()) for kept in staying.values())
        return PassResult(result, len(staying), details={"spaces cut": len(staying), "indices dropped": gone})

    def _asked(self, module: Module, found: Spaces) -> Iterator[tuple[Space, _Asked]]:
        """The spaces that are meant; raises InputError for one that is not there, may not be cut or is asked for twice."""
        seen: dict[Space, _Asked] = {}
        for rule in self.spaces:
            names = [name for name in module.params if _matches(rule, name)]
            if not names:
                raise InputError(f"{self.name}: no parameter's name holds a match of {rule.match!r}")
            for name in names:
                space = _space(module, found, rule, name)
                before = seen.get(space)
                if before is not None and before.rule.model_copy(update={"match": rule.match}) == rule:
                    continue
                if before is not None:
                    raise InputError(
                        f"{self.name}: {before.name} and {name} have the same space of {space.size} indices, which is asked "
                        f"for by {before.rule.match!r} and by {rule.match!r}; ask for it once"
                    )
                reason = keeps(module, space)
                if reason:
                    raise InputError(
                        f"{self.name}: the space of {space.size} indices of {name} (axis {rule.axis}) stays: {reason}"
                    )
                seen[space] = _Asked(rule, name)
                yield space, seen[space]

    def _scores(
        self, module: Module, found: Spaces, chosen: Sequence[Space], context: Context
    ) -> Mapping[Space, torch.Tensor]:
        if self.criterion == "magnitude" or not chosen:
            return {space: by_magnitude(module, found, space) for space in chosen}
        if context.calibration is None:
            raise InputError(
                f"the criterion 'activation' of pass {self.name!r} needs calibration data, and there are none; give some "
                f"(`compress(..., calibration=...)`, `planish compile --calibration FILE`), or choose 'magnitude'"
            )
        scores = by_activation(module, found, chosen, context.calibration, context.progress)
        return dict(zip(chosen, scores, strict=True))

    def _staying(self, space: Space, ask: _Asked, scores: Mapping[Space, torch.Tensor]) -> torch.Tensor:
        """Which indices stay, bool [n]."""
        assert isinstance(space.size, int)
        kept = torch.ones(space.size, dtype=torch.bool)
        if (ask.rule.indices is None) == (ask.rule.fraction is None):
            raise InputError(
                f"{self.name}: for {ask.rule.match!r} give either the `indices` that go, or the `fraction` of them"
            )
        if ask.rule.indices is not None:
            beyond = [index for index in ask.rule.indices if index >= space.size]
            if beyond:
                raise InputError(
                    f"{self.name}: index {beyond[0]} of {ask.name} is out of range: the space has {space.size} indices"
                )
            kept[list(ask.rule.indices)] = False
            if not bool(kept.any()):
                raise InputError(
                    f"{self.name}: nothing would be left of the {space.size} indices of {ask.name}; keep one at least"
                )
            if self.align > 1 and int(kept.sum()) % self.align:
                raise InputError(
                    f"{self.name}: {int(kept.sum())} indices of {ask.name} would stay, which is no multiple of {self.align}; "
                    f"give other `indices`, or `align: 1`"
                )
            return kept
        assert ask.rule.fraction is not None
        left = space.size - int(ask.rule.fraction * space.size)
        left = min(space.size, -(-left // self.align) * self.align)
        kept[scores[space].argsort(stable=True)[: space.size - left]] = False
        return kept


def _matches(rule: Dropping, name: str) -> bool:
    try:
        return re.search(rule.match, name) is not None
    except re.error as error:
        raise InputError(f"{rule.match!r} is no regular expression: {error}") from error


def _space(module: Module, found: Spaces, rule: Dropping, name: str) -> Space:
    rank = module.params[name].type.rank
    if not -rank <= rule.axis < rank:
        raise InputError(f"{name} ({module.params[name].type}) has no axis {rule.axis}")
    parts = [space for space in found.of(("param", name), rule.axis % rank) if space.size != 1]
    if not 0 <= rule.part < len(parts):
        sizes = " x ".join(str(space.size) for space in parts) or "no indices"
        raise InputError(f"axis {rule.axis} of {name} is made of {sizes}: it has no part {rule.part}")
    return parts[rule.part]
