"""Finding the pass of a pipeline that breaks something which only shows at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planish.ir.errors import InputError
from planish.ir.module import Module
from planish.passes.check import Checker, CheckOptions
from planish.passes.contract import Exact
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Pass


@dataclass(frozen=True)
class Culprit:
    """The first pass after which something fails.

    Attributes:
        number: its place in the pipeline, from 0; `PassManager(limit=number)` stops right before it.
        step: the pass.
        before, after: the modules around it.
        tested: how many modules were tested to find it.
    """

    number: int
    step: Pass
    before: Module
    after: Module
    tested: int


def bisect(
    module: Module,
    passes: Sequence[Pass],
    fails: Callable[[Module], bool] | None = None,
    context: Context | None = None,
    options: CheckOptions | None = None,
) -> Culprit | None:
    """The guilty pass, or None when the whole pipeline does not fail.

    Args:
        fails: tells whether a module is broken; by default, whether its functions differ from those of `module` by more
            than float32 explains. If it fails after a pass, it is taken to fail after all later ones too.

    Raises InputError when `module` itself fails already.
    """
    broken = fails or _differs_from(module, (context or Context()).seed, options)
    modules = [module]
    for step in passes:
        # Modules share what a pass left alone, so keeping all of them costs little; none is checked on the way.
        modules.append(PassManager([step], check=False, context=context).run(modules[-1])[0])
    tested = 2
    if broken(module):
        raise InputError("the module fails before any pass has run, so no pass is to blame")
    if not broken(modules[-1]):
        return None
    good, bad = 0, len(modules) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        tested += 1
        good, bad = (good, middle) if broken(modules[middle]) else (middle, bad)
    return Culprit(good, passes[good], modules[good], modules[bad], tested)


def _differs_from(module: Module, seed: int, options: CheckOptions | None) -> Callable[[Module], bool]:
    checker = Checker(options, seed)
    return lambda other: bool(checker.check_whole(module, other, Exact()).failures)
