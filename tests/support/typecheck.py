"""Run mypy over the package as it is imported, and over the scripts of bench/ as they are run.

mypy cannot follow the editable install's import hook, so it is given an untracked tree of links with the import layout. A
script finds its neighbours because Python puts its folder on the path, so that folder is on mypy's as well; not while the
package is checked, which must not find them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ir", "passes", "codegen", "frontends", "targets")


def main() -> int:
    package = ROOT / ".typing" / "planish"
    package.mkdir(parents=True, exist_ok=True)
    links = {room: ROOT / room for room in ROOMS} | {"testing": ROOT / "tests" / "support"}
    links |= {path.name: path for path in (ROOT / "planish").iterdir() if path.name != "__pycache__"}
    for stale in package.iterdir():
        if stale.name not in links:
            stale.unlink()
    for name, target in links.items():
        link = package / name
        if not link.is_symlink():
            link.symlink_to(target)
    # The scripts import the package, so its errors would come twice.
    return _mypy([package.parent], "-p", "planish") or _mypy([package.parent, ROOT / "bench"], "bench")


def _mypy(path: Sequence[Path], *what: str) -> int:
    """The exit code of mypy, which finds modules in the folders of `path`."""
    command = [sys.executable, "-m", "mypy", "--namespace-packages", "--explicit-package-bases", *what]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
