"""Who may import whom. The picture:

frontends -> ir <- passes <- codegen <- targets        planish imports all; nobody imports planish or frontends
"""

from __future__ import annotations

import pytest

from planish.testing.tree import ROOMS, ROOT, imports, python_files

ALLOWED = {
    "ir": {"ir"},
    "passes": {"passes", "ir"},
    "frontends": {"frontends", "ir"},
    "codegen": {"codegen", "passes", "ir"},
    "targets": {"targets", "codegen", "passes", "ir"},
}
# Outside packages that only some rooms may import.
CONFINED = {"tvm": {"codegen", "targets"}, "tvm_ffi": {"codegen", "targets"}}
TOP_LEVEL_FOLDERS = {name.removeprefix("planish.") for name in ROOMS} - {"planish"} | {"tests"}
# The runtime runs where no compiler is installed.
RUNTIME = "codegen/runtime"


def room_of(module: str) -> str:
    """The room that a planish module belongs to; the front door is the room "planish"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and f"planish.{parts[1]}" in ROOMS else "planish"


def faults(folder: str, source: str) -> list[str]:
    """What is wrong with the imports of a file in that folder (relative to the root)."""
    room, found = folder.split("/")[0], []
    for module, line in imports(source):
        top, what = module.split(".")[0], f"line {line} imports {module}"
        if not top:
            found.append(f"{what}: imports are absolute")
        if top == "planish" and room in ALLOWED and room_of(module) not in ALLOWED[room]:
            found.append(f"{what}, but {room} may import only {', '.join(sorted(ALLOWED[room]))}")
        if top in CONFINED and room in ALLOWED and room not in CONFINED[top]:
            found.append(f"{what}, but only {', '.join(sorted(CONFINED[top]))} may")
        if top in TOP_LEVEL_FOLDERS:
            found.append(f"{what}: a second copy of every class would follow; import planish.{module}")
        if folder.startswith(RUNTIME) and top == "tvm":
            found.append(f"{what}, but the runtime must run without the compiler")
    return found


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_follow_the_arrows(room: str) -> None:
    found = []
    for path in python_files(ROOMS[room]):
        place = path.relative_to(ROOT)
        found += [f"{place}: {fault}" for fault in faults(place.parent.as_posix(), path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "folder, source",
    [
        ("ir", "import planish.targets"),
        ("ir", "import planish"),
        ("ir", "from planish import load"),
        ("ir/ops", "from planish import passes"),
        ("ir", "from planish.passes.recipe import Recipe"),
        ("ir", "from . import types"),
        ("ir", "import ir"),
        ("passes", "import tvm"),
        ("passes", "from tvm.script import tir"),
        ("codegen", "from planish.frontends import calls"),
        ("codegen/runtime", "import tvm"),
        ("frontends", "def f():\n    import planish.passes"),
        ("targets/host", "import planish.testing"),
    ],
)
def test_a_planted_import_is_caught(folder: str, source: str) -> None:
    assert faults(folder, source)


@pytest.mark.parametrize(
    "folder, source",
    [
        ("ir", "from planish.ir import types"),
        ("ir", "from planish import ir"),
        ("passes", "import torch"),
        ("codegen", "import tvm"),
        ("codegen/runtime", "import tvm_ffi"),
        ("targets/host", "from planish.codegen.tiles import int8"),
        ("planish", "import planish.frontends"),
    ],
)
def test_what_the_picture_shows_is_allowed(folder: str, source: str) -> None:
    assert not faults(folder, source)
