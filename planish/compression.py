"""Passes applied to a model, each held to its contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.model import Model
from planish.passes.pass_base import Context, Pass

if TYPE_CHECKING:
    from planish.passes.calibration import Calibration
    from planish.passes.recipe import Recipe


def compress(
    model: Model,
    recipe: Recipe | str | Path | Sequence[Pass],
    *,
    check: bool = True,
    capabilities: Any = None,
    calibration: Calibration | None = None,
    progress: Callable[[float, str], None] = lambda fraction, phrase: None,
) -> Model:
    """Run a recipe.

    Args:
        model: what `trace` returned; it stays as it is.
        recipe: a recipe, its YAML file, or a list of passes.
        check: hold every pass to its contract on probe inputs.
        capabilities: facts about the machine to compile for, for passes that use them.
        calibration: inputs to observe the model on, for passes that do; `planish.calibration` makes them from a text.
        progress: called with a fraction between 0 and 1 and a phrase.

    Raises:
        InputError: for a recipe that is not one, or options that do not fit the model.
        PassError: when a pass breaks its contract, naming the pass and the operation, with a reproducer.
    """
    from planish.passes.manager import PassManager
    from planish.passes.recipe import as_recipe

    resolved = as_recipe(recipe)
    context = Context(capabilities=capabilities, seed=resolved.seed, progress=progress, calibration=calibration)
    module, report = PassManager(resolved.passes, check=check, context=context).run(model.module)
    return model.after(module, report, resolved.dump())
