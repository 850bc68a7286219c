"""Tracing a module with torch.export, with its failures in one sentence."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from planish.frontends.sources import HIDDEN_FOLDERS, source_line
from planish.ir import PlanishError, UnsupportedError


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> torch.export.ExportedProgram:
    """torch.export.export without its warnings.

    Raises UnsupportedError saying what it stumbled over in the module (called `name`, or by its class), and where.
    """
    # With symbolic sizes, remembering what an operator's fake result was takes longer than to ask the operator again.
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    with torch.no_grad(), warnings.catch_warnings(), uncached:
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False)
        except PlanishError:
            raise
        except Exception as error:
            where = _innermost(error) or source_line(str(error))
            place = f" at {where}" if where else ""
            raise UnsupportedError(
                f"{name or type(module).__name__} cannot be traced{place}: {_reason(error)}"
            ) from error


def _innermost(error: Exception) -> str:
    """ "file.py:line" of the innermost frame of the traced program in the error's traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(HIDDEN_FOLDERS)]
    inside = [f for f in frames if not f.filename.startswith("<") and Path(f.filename).name != "contextlib.py"]
    # The last frame outside is the caller of the import when the traced program itself raised nothing.
    entered = any(f.filename.startswith(HIDDEN_FOLDERS) for f in traceback.extract_tb(error.__traceback__))
    return f"{Path(inside[-1].filename).name}:{inside[-1].lineno}" if inside and entered else ""


def _reason(error: Exception) -> str:
    """The part of torch's message that speaks about the program, on one line."""
    if isinstance(error, GuardOnDataDependentSymNode):
        return "it branches on values, or makes sizes of values, that are known only when it runs"
    text = str(error).split("\n\n")[0] or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip() and "TORCH_LOGS" not in line]
    return " ".join(lines)[:400].rstrip(". ")
