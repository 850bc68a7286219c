"""The project's own shape: what is packaged, what is registered, and what no file may hold."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from planish.ir import Encoding, Op
from planish.ir.encodings import ENCODINGS
from planish.ir.ops import OPS
from planish.passes.pass_base import Pass
from planish.passes.registry import PASSES
from planish.testing.tree import ROOMS, ROOT, packages, project, python_files

LINES = 400
# Files that may be longer, with the reason.
LONGER: dict[str, str] = {}
FOLDERS = ("planish", "ir", "passes", "codegen", "frontends", "targets", "tests", "bench", "examples")
FILES = python_files(*(ROOT / name for name in FOLDERS))
# Spelt so that this file does not hold them.
BANNED_WORDS = ("TO" + "DO", "FIX" + "ME", "X" + "XX", "/" + "tmp", "/" + "work/", "../" + "shared")
BANNED_CALLS = {"eval", "exec", "__import__", "compile"}
BANNED_IMPORTS = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


def test_listed_packages_are_those_of_the_tree() -> None:
    """A package that is not listed works from a checkout and is missing from the wheel."""
    listed = project()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages())
    mapped = project()["tool"]["setuptools"]["package-dir"]
    assert {name: ROOT / folder for name, folder in mapped.items()} == ROOMS


@pytest.mark.parametrize("name", sorted(set(ROOMS) - {"planish.testing"}))
def test_rooms_are_typed(name: str) -> None:
    assert (ROOMS[name] / "py.typed").exists()


def classes_below(base: type, package: str) -> set[type]:
    """The subclasses of `base` that the modules of a package define, once all of them are imported."""
    folder = packages()[package]
    for path in python_files(folder):
        parts = [p for p in path.relative_to(folder).with_suffix("").parts if p != "__init__"]
        importlib.import_module(".".join([package, *parts]))
    found, left = set(), [base]
    while left:
        left += (below := left.pop().__subclasses__())
        found |= {cls for cls in below if cls.__module__.startswith(package + ".") and "name" in vars(cls)}
    return found


def test_registered_operations_are_those_of_the_files() -> None:
    assert classes_below(Op, "planish.ir.ops") == set(OPS.values())
    assert all(op.name == name for name, op in OPS.items())


def test_registered_encodings_are_those_of_the_files() -> None:
    assert classes_below(Encoding, "planish.ir.encodings") == set(ENCODINGS.values())


def test_registered_passes_are_those_of_the_files() -> None:
    found = {f"{cls.__module__}:{cls.__name__}" for cls in classes_below(Pass, "planish.passes")}
    assert found == set(PASSES.values())
    for name, place in PASSES.items():
        module, _, attribute = place.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name
        assert module.rpartition(".")[2] == name.replace("-", "_"), "a pass, its file and its class share one name"
        assert attribute.lower() == name.replace("-", "")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_files_are_short() -> None:
    long = {str(p.relative_to(ROOT)): count for p in FILES if (count := text_of(p).count("\n")) > LINES}
    assert long.keys() == LONGER.keys(), f"split these, or name them with a reason: {long}"


def test_every_file_says_what_it_owns() -> None:
    """Except an `__init__.py` that holds nothing, or only the guard against a second copy."""
    for path in FILES:
        tree = ast.parse(text_of(path))
        if path.name == "__init__.py" and len(tree.body) <= 2:
            continue
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert "from __future__ import annotations" in text_of(path), path


def test_no_file_holds_what_is_banned() -> None:
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(w)}" for w in BANNED_WORDS))
    found = [f"{p.relative_to(ROOT)}: {hit.group()}" for p in FILES for hit in pattern.finditer(text_of(p))]
    for path in FILES:
        for node in ast.walk(ast.parse(text_of(path))):
            found += [f"{path.relative_to(ROOT)}:{node.lineno}: {fault}" for fault in banned(node)]  # type: ignore[attr-defined]
    assert not found, "\n".join(found)


def banned(node: ast.AST) -> list[str]:
    """What is wrong with one node of a syntax tree."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return [f"imports {n}" for n in names if n.split(".")[0] in BANNED_IMPORTS]
    if isinstance(node, ast.Name) and node.id == "NotImplementedError":
        return ["raises NotImplementedError: refuse with a sentence, or leave it out"]
    if not isinstance(node, ast.Call):
        return []
    if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
        return [f"calls {node.func.id}"]
    if ast.unparse(node.func) == "torch.load":
        return ["calls torch.load: read safetensors"]
    shell = [k for k in node.keywords if k.arg == "shell" and getattr(k.value, "value", True)]
    return ["runs a shell"] if shell else []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import load",
        "torch.load('x')",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "raise NotImplementedError",
    ],
)
def test_what_is_banned_is_caught(source: str) -> None:
    assert any(banned(node) for node in ast.walk(ast.parse(source)))
