from __future__ import annotations

if __name__ == "targets":
    raise ImportError("import planish.targets, not targets: a second copy of every class would follow")
