"""What a pass is: a frozen value whose fields are its options, a contract, and a function from module to module."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from planish.ir.errors import InputError, PlanishError
from planish.ir.module import Module, Operand, Value
from planish.passes.contract import Contract, Exact

if TYPE_CHECKING:
    from planish.passes.calibration.data import Calibration

Correspondence: TypeAlias = Mapping[Value, Operand]
"""Values of the source function with the operands of the result that hold the same value. `Rewriter.correspondence`
and `rewrite` record it; the checker cuts both functions at these pairs."""


@dataclass(frozen=True, eq=False)
class Carried:
    """An operand of the result that holds a linear image of what a value of the source holds: turned, scaled, cut.

    Attributes:
        operand: of the result.
        image: from what the source's value holds to what the operand holds, both float64.
        bound: from bounds on the elements of the one to bounds on those of the other.
        terms: how many products the image adds up for an element; 0 when it rounds nothing.
    """

    operand: Operand
    image: Callable[[torch.Tensor], torch.Tensor]
    bound: Callable[[torch.Tensor], torch.Tensor]
    terms: int = 0


class PassError(PlanishError):
    """A pass that broke its contract, or a rule that misbehaved.

    Attributes, as far as the manager knows them:
        diverging: the first operation whose result differs.
        outcome: everything the check found.
        report: the records of the passes before.
        reproducer: the folder that makes it fail again.
    """

    diverging: str = ""
    outcome: Any = None
    report: Any = None
    reproducer: Path | None = None


def nearest(word: str, known: Iterable[str]) -> str:
    """A half-sentence that helps with a misspelt name: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names) or 'none'}"


@dataclass(frozen=True)
class Context:
    """What a pass may know besides the module.

    Attributes:
        capabilities: facts about the machine to compile for, None when the pass must not depend on one.
        seed: the seed of everything drawn at random.
        progress: called with a fraction between 0 and 1 and a phrase.
        calibration: inputs on which the network may be observed, None when there are none.
    """

    capabilities: Any = None
    seed: int = 0
    progress: Callable[[float, str], None] = lambda fraction, phrase: None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    Attributes:
        module: the result; the very module that went in when nothing changed.
        matches: how often the pass found what it looks for and rewrote it.
        correspondence: by function name, which values stand for which; may be left empty, then the checker finds what
            the two functions share by structure alone.
        carried: by function name, operands that hold an image of a value; the checker cuts there too.
        refusals: sentences saying where the pass did nothing, and why.
        details: figures for the report.
    """

    module: Module
    matches: int
    correspondence: Mapping[str, Correspondence] = field(default_factory=dict)
    carried: Mapping[str, Mapping[Value, Carried]] = field(default_factory=dict, kw_only=True)
    refusals: tuple[str, ...] = ()
    details: Mapping[str, str | int | float] = field(default_factory=dict)


def _tupled(options: Any) -> Any:
    """YAML knows no tuples, and strict validation takes no list for one: lists become tuples first."""
    if isinstance(options, Mapping):
        return {key: _tupled(value) for key, value in options.items()}
    return tuple(_tupled(value) for value in options) if isinstance(options, list) else options


class Pass(BaseModel):
    """Base of all passes. A subclass is a frozen value: its fields are its options, its docstring its documentation.

    A pass leaves the module it was given as it was, returns a module that verifies, keeps the names and types of all
    functions' inputs and outputs, and, if it returns another module, has changed it. The manager checks all of it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    name: ClassVar[str]
    adds_functions: ClassVar[bool] = False
    """Whether the pass may add functions to the module (the existing ones keep their interface)."""

    @property
    def contract(self) -> Contract:
        return Exact()

    def apply(self, module: Module, context: Context) -> PassResult:
        raise PassError(f"pass {type(self).__name__} declares no `apply`")

    def ensures(self, before: Module, after: Module, context: Context) -> tuple[str, ...]:
        """Sentences about what the result lacks of what this pass promises beyond its contract; empty when all holds."""
        return ()

    def options(self) -> dict[str, Any]:
        """The options as plain values (numbers, strings, lists, mappings), defaults included."""
        return self.model_dump(mode="json")

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str = "") -> Pass:
        """The pass with these options; raises InputError with one sentence about the first one that does not fit."""
        place = f" in {where}" if where else ""
        for key in options:
            if key not in cls.model_fields:
                hint = nearest(str(key), cls.model_fields)
                raise InputError(f"pass {cls.name!r} has no option {key!r}{place}; {hint}")
        try:
            return cls(**_tupled(options))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "options"
            raise InputError(
                f"option {key!r} of pass {cls.name!r}{place} is {first['input']!r}: {first['msg']}"
            ) from error
