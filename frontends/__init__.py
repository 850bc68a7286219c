from __future__ import annotations

if __name__ == "frontends":
    raise ImportError("import planish.frontends, not frontends: a second copy of every class would follow")
