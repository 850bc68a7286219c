"""The package that speaks to TVM's libraries, imported without torch.

`tvm_ffi` imports torch wherever that is installed, 150 MB that a run does not need. Unless the process has torch already,
it is told that there is none; tensors then cross by DLPack all the same.
"""

from __future__ import annotations

import sys
from typing import Any


def _without_torch() -> Any:
    loaded = "torch" in sys.modules
    if not loaded:
        # An entry of None makes the import fail at once, which tvm_ffi is prepared for.
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm_ffi
    finally:
        if not loaded:
            del sys.modules["torch"]
    return tvm_ffi


tvm_ffi = _without_torch()
