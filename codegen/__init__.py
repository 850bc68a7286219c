from __future__ import annotations

if __name__ == "codegen":
    raise ImportError("import planish.codegen, not codegen: a second copy of every class would follow")
