"""Targets: one folder a machine. Targets outside the package register as `planish.targets` entry points."""

from __future__ import annotations

if __name__ == "targets":
    raise ImportError("import planish.targets, not targets: a second copy of every class would follow")

import difflib
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from planish.ir.errors import InputError

if TYPE_CHECKING:
    from planish.codegen.target import Target

# Modules are named and not imported: a list of targets must not load a compiler.
TARGETS: dict[str, str] = {
    "arm": "planish.targets.arm.target:ArmTarget",
    "cuda": "planish.targets.cuda.target:CudaTarget",
    "host": "planish.targets.host.target:HostTarget",
}


def target_names() -> list[str]:
    """The names that `open_target` knows."""
    return sorted({*TARGETS, *(point.name for point in entry_points(group="planish.targets"))})


def target_class(name: str) -> type[Target]:
    """The class of targets of that name, without what follows a colon.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    made: type[Target]
    if name in TARGETS:
        module, _, attribute = TARGETS[name].partition(":")
        made = getattr(importlib.import_module(module), attribute)
        return made
    for point in entry_points(group="planish.targets"):
        if point.name == name:
            made = point.load()
            return made
    known = target_names()
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    raise InputError(f"there is no target {name!r}; {hint}")


def open_target(text: str) -> Target:
    """The target that a user names: "host", "arm", "arm:cortex-a76+i8mm".

    Raises:
        InputError: for an unknown name, processor or feature, with the nearest known one.
        UnsupportedError: when the target cannot be used on this machine.
    """
    name, _, detail = text.partition(":")
    return target_class(name).named(detail)
