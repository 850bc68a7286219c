"""Recipes are strict: every mistake is one sentence that names the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish.ir import InputError
from planish.passes.canonicalise import Canonicalise
from planish.passes.dead_code import DeadCode
from planish.passes.fold_constants import FoldConstants
from planish.passes.quantize import Quantize
from planish.passes.recipe import Recipe, as_recipe, load_recipe, parse_recipe
from planish.passes.registry import PASSES, pass_class, pass_names
from planish.passes.selection import Rule

GOOD = """
passes:
  - canonicalise
  - fold-constants: {limit_bytes: 64}
  - dead-code:
  - quantize: {group: 64, rules: [{match: norm, format: null}, {kind: head, format: 8, group: row}]}
seed: 7
"""


def test_a_recipe() -> None:
    recipe = parse_recipe(GOOD)
    assert recipe.seed == 7
    assert recipe.passes == (
        Canonicalise(), FoldConstants(limit_bytes=64), DeadCode(),
        Quantize(group=64, rules=(Rule(match="norm", format=None), Rule(kind="head", format=8, group="row"))),
    )  # fmt: skip


def test_the_resolved_recipe_spells_out_every_default_and_reads_back() -> None:
    text = parse_recipe(GOOD).dump()
    assert "null" in text and "limit_bytes: 64" in text and "method: rtn" in text
    assert parse_recipe(text) == parse_recipe(GOOD)


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_registered_pass(name: str) -> None:
    """Its class has that name and a docstring, its defaults make a pass, and its file is called after it."""
    found = pass_class(name)
    assert found.name == name and found.__doc__
    assert PASSES[name] == f"planish.passes.{name.replace('-', '_')}:{found.__name__}"
    assert found.__name__.lower() == name.replace("-", "")
    made = found.from_options({})
    assert parse_recipe(Recipe((made,)).dump()).passes == (made,)
    assert name in pass_names()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("passes: [canonicalize]", "no pass is called 'canonicalize' in entry 1 of r; did you mean 'canonicalise'?"),
        ("passes: [zzz]", "no pass is called 'zzz' in entry 1 of r; known are canonicalise, "),
        ("pases: []", "r has the unknown key 'pases'; did you mean 'passes'?"),
        ("passes: []\npasses: []", "r: the key 'passes' stands twice in line 1"),
        ("passes:\n- fold-constants: {limit: 3}", "has no option 'limit' in entry 1 of r; did you mean 'limit_bytes'?"),
        ("passes:\n- dead-code: {x: 1}", "pass 'dead-code' has no option 'x' in entry 1 of r; known are none"),
        ("passes:\n- fold-constants: {limit_bytes: '3'}", "in entry 1 of r is '3': Input should be a valid integer"),
        ("passes:\n- fold-constants: {limit_bytes: true}", "is True: Input should be a valid integer"),
        ("passes:\n- fold-constants: 3", "the options of pass 'fold-constants' in entry 1 of r must be a mapping, got 3"),
        ("passes:\n- {dead-code: , canonicalise: }", "entry 1 of r must be a pass's name, or one name with its options"),
        ("passes: dead-code", "r needs the key 'passes' with a list of passes"),
        ("seed: 1", "r needs the key 'passes' with a list of passes"),
        ("passes: []\nseed: x", "the seed of r must be an integer, got 'x'"),
        ("- dead-code", "r must be a mapping with the key 'passes', not list"),
        ("passes: [", "r is not YAML: "),
        ("passes: [!!python/object:os.system x]", "r is not YAML: "),
    ],
)  # fmt: skip
def test_mistakes(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "r")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    assert load_recipe(tmp_path / "good.yaml") == as_recipe(str(tmp_path / "good.yaml")) == parse_recipe(GOOD)
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "binary.yaml")
    assert as_recipe([DeadCode()]) == Recipe((DeadCode(),))


def test_passes_are_values() -> None:
    assert FoldConstants(limit_bytes=3) == FoldConstants(limit_bytes=3) != FoldConstants()
    with pytest.raises(ValueError):
        FoldConstants().limit_bytes = 4  # type: ignore[misc]
