"""Which weights are quantised, and how: rules over names and kinds, the first that fits counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from planish.ir.encodings import Dense
from planish.ir.errors import InputError
from planish.ir.module import Module
from planish.passes.roles import roles
from planish.passes.weight_format import Format, Group, ScaleName

Kind = Literal["linear", "embedding", "head"]
Method = Literal["rtn", "mse", "gptq"]


class Rule(BaseModel):
    """An exception to what a pass does with weights in general.

    It is for weights of `kind` (any, if null) whose name holds a match of the regular expression `match` (any, if null).
    A `format` of null leaves them as they are; other fields that are null are as the pass has them.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    match: str | None = None
    kind: Kind | None = None
    format: Format | None
    group: Group | None = None
    zero_points: bool | None = None
    scales: ScaleName | None = None
    method: Method | None = None

    def given(self) -> dict[str, Any]:
        """What it says about how, without what is null."""
        said = ("group", "zero_points", "scales", "method")
        return {name: value for name in said if (value := getattr(self, name)) is not None}

    def fits(self, name: str, role: str) -> bool:
        """Raises InputError when `match` is no regular expression."""
        if self.kind is not None and self.kind != role:
            return False
        try:
            return self.match is None or re.search(self.match, name) is not None
        except re.error as error:
            raise InputError(f"the rule's match {self.match!r} is no regular expression: {error}") from error


@dataclass(frozen=True)
class Choice:
    """How a weight is quantised."""

    format: Format
    group: Group
    zero_points: bool
    scales: ScaleName
    method: Method
    ruled: bool = field(default=False, compare=False)
    """Whether a rule made it."""


def select(
    module: Module, rules: Sequence[Rule], choose: Callable[[Rule | None], Choice | None]
) -> tuple[dict[str, Choice], tuple[str, ...]]:
    """A choice for each dense weight that is to be quantised, by name, and sentences about rules that fit none.

    `choose` says what a rule means, and with None what is done where no rule fits.

    Raises:
        InputError: when a parameter is used in two ways (tied embeddings) that get different answers.
    """
    chosen: dict[str, Choice] = {}
    used: set[int] = set()
    for name, found in roles(module).items():
        if not isinstance(module.params[name].encoding, Dense):
            continue
        answers: dict[str, Choice | None] = {}
        for role in sorted(found):
            number = next((n for n, rule in enumerate(rules) if rule.fits(name, role)), None)
            used |= set() if number is None else {number}
            answers[role] = choose(None if number is None else rules[number])
        if len(set(answers.values())) > 1:
            asked = ", ".join(f"{role}: {None if a is None else a.format}" for role, a in answers.items())
            raise InputError(
                f"parameter {name!r} is shared by {' and '.join(answers)}, which ask for different formats ({asked}); "
                f"give it one answer by a rule that matches its name"
            )
        (answer,) = set(answers.values())
        if answer is not None:
            chosen[name] = answer
    idle = tuple(
        f"rule {n + 1} ({_text(rule)}) fits no dense weight that no rule before it fits"
        for n, rule in enumerate(rules)
        if n not in used
    )
    return chosen, idle


def _text(rule: Rule) -> str:
    return ", ".join(f"{k}: {v}" for k, v in rule.model_dump().items() if k in ("match", "kind") and v is not None)
