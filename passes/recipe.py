"""Recipes: a pipeline of passes with their options, as strict YAML.

    passes:
      - canonicalise
      - quantize: {format: 4, group: 32}
    seed: 0

Nothing is guessed: an unknown key, pass or option, a key written twice or a value of another type is one sentence that
names the nearest known one. `dump` writes the resolved recipe, every default spelt out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from planish.ir.errors import InputError
from planish.passes.pass_base import Pass, nearest
from planish.passes.registry import pass_class

KEYS = ("passes", "seed")


@dataclass(frozen=True)
class Recipe:
    """Passes in the order in which they run, and the seed of what they draw."""

    passes: tuple[Pass, ...]
    seed: int = 0

    def dump(self) -> str:
        """YAML that `parse_recipe` reads back to the same recipe."""
        document = {"passes": [{p.name: p.options()} for p in self.passes], "seed": self.seed}
        text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
        return text


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML, except that a key may not stand twice in one mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"the key {key!r} stands twice in line {node.start_mark.line + 1}")
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def parse_recipe(text: str, where: str = "the recipe") -> Recipe:
    """The recipe that a YAML text describes; raises InputError with one sentence."""
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise InputError(f"{where} must be a mapping with the key 'passes', not {type(document).__name__}")
    for key in document:
        if key not in KEYS:
            raise InputError(f"{where} has the unknown key {key!r}; {nearest(str(key), KEYS)}")
    entries = document.get("passes")
    if not isinstance(entries, list):
        raise InputError(f"{where} needs the key 'passes' with a list of passes")
    seed = document.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"the seed of {where} must be an integer, got {seed!r}")
    return Recipe(tuple(_entry(entry, number, where) for number, entry in enumerate(entries)), seed)


def _entry(entry: Any, number: int, where: str) -> Pass:
    """One item of the list: a pass's name, or a mapping from its name to its options."""
    place = f"entry {number + 1} of {where}"
    if isinstance(entry, str):
        return pass_class(entry, place).from_options({}, place)
    if not isinstance(entry, dict) or len(entry) != 1:
        raise InputError(f"{place} must be a pass's name, or one name with its options, got {entry!r}")
    ((name, options),) = entry.items()
    if options is not None and not isinstance(options, dict):
        raise InputError(f"the options of pass {name!r} in {place} must be a mapping, got {options!r}")
    return pass_class(str(name), place).from_options(options or {}, place)


def load_recipe(path: Path | str) -> Recipe:
    """The recipe in a file; raises InputError when it cannot be read or does not hold a recipe."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} cannot be read: {error}") from error
    return parse_recipe(text, str(path))


def as_recipe(given: Recipe | Path | str | Sequence[Pass]) -> Recipe:
    """A recipe from what a caller may have: a recipe, a file, or a list of passes."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, (str, Path)):
        return load_recipe(given)
    return Recipe(tuple(given))
