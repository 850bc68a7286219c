"""Programs from torch and transformers, imported into the IR."""

from __future__ import annotations

if __name__ == "frontends":
    raise ImportError("import planish.frontends, not frontends: a second copy of every class would follow")

from pathlib import Path

import torch

from planish.frontends.exported import import_exported
from planish.frontends.graph_module import import_graph_module
from planish.frontends.nn_module import import_module
from planish.frontends.pt2 import import_pt2
from planish.ir import InputError, Module


def import_checkpoint(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    check_finite: bool = True,
    rope_length: int | None = None,
    ignore_unexpected: bool = False,
) -> Module:
    """The model of a transformers checkpoint folder; see `planish.frontends.checkpoint.import_checkpoint`.

    Needs the extra "hf"; transformers is imported only when this is called, because that takes seconds.
    """
    try:
        from planish.frontends import checkpoint
    except ModuleNotFoundError as error:
        raise InputError(f"reading checkpoints needs {error.name}; pip install 'planish[hf]'") from error
    return checkpoint.import_checkpoint(folder, dtype, check_finite, rope_length, ignore_unexpected)


__all__ = ["import_checkpoint", "import_exported", "import_graph_module", "import_module", "import_pt2"]
