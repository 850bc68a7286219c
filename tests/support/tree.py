"""The source tree as tests of its shape read it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Folders that are mapped to packages, by import name.
ROOMS = {
    "planish": ROOT / "planish",
    **{f"planish.{name}": ROOT / name for name in ("ir", "passes", "codegen", "frontends", "targets")},
    "planish.testing": ROOT / "tests" / "support",
}


def python_files(*folders: Path) -> list[Path]:
    """The Python files below the folders, in order; caches and built files left out."""
    found = {p for folder in folders for p in folder.rglob("*.py") if not {"__pycache__", "build"} & set(p.parts)}
    return sorted(found)


def packages() -> dict[str, Path]:
    """Every package of the tree by import name."""
    found = {}
    for name, folder in ROOMS.items():
        for init in folder.rglob("__init__.py"):
            found[".".join([name, *init.parent.relative_to(folder).parts])] = init.parent
    return found


def imports(source: str) -> Iterator[tuple[str, int]]:
    """The absolute names of modules that a source text imports, anywhere in it, with their lines.

    `from planish import ir` imports planish.ir; `from planish.ir import Value` imports planish.ir, not a module Value.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "planish":
            yield from (_named_by_the_front_door(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level) + (node.module or ""), node.lineno


def _named_by_the_front_door(name: str, line: int) -> tuple[str, int]:
    return (f"planish.{name}" if f"planish.{name}" in ROOMS else "planish"), line


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
