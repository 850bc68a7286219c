"""A model on its way from a checkpoint to an artifact: its module, where it came from, and what was done to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from planish.ir import Module

if TYPE_CHECKING:
    from planish.passes.manager import Report


@dataclass(frozen=True, eq=False)
class Model:
    """What `trace` and `compress` return.

    Attributes:
        module: the program and its parameters.
        folder: the checkpoint folder whose tokenizer belongs to the model, None for a program from elsewhere.
        recipe: the resolved recipes that were applied, as YAML, in order.
        reports: what the pass manager recorded, one report for each pipeline that ran.
    """

    module: Module
    folder: Path | None = None
    recipe: tuple[str, ...] = ()
    reports: tuple[Report, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as they are stored."""
        return sum(p.nbytes for p in self.module.params.values())

    def after(self, module: Module, report: Report, recipe: str | None = None) -> Model:
        """The model after one more pipeline."""
        recipes = self.recipe if recipe is None else (*self.recipe, recipe)
        return replace(self, module=module, recipe=recipes, reports=(*self.reports, report))
