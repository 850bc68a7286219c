"""Run mypy over the package as it is imported.

mypy cannot follow the editable install's import hook, so it is given an untracked tree of links with the import layout.
"""

from __future__ import annotations

import os
import subprocess
import sys
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
    command = [sys.executable, "-m", "mypy", "--namespace-packages", "--explicit-package-bases", "-p", "planish"]
    environment = {**os.environ, "MYPYPATH": str(package.parent)}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
