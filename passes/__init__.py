from __future__ import annotations

if __name__ == "passes":
    raise ImportError("import planish.passes, not passes: a second copy of every class would follow")
