"""Where a traced call comes from, as messages say it: "modeling_llama.py:120 in model.layers.0.mlp"."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# Frames of torch itself and of this package tell the reader nothing about the traced program.
HIDDEN_FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def source_of(node: fx.Node, root: str = "") -> str:
    """The innermost line of the traced program that made `node`, and the module it belongs to; "" when unknown.

    `root` is a prefix cut off the module's path: the name under which a wrapper holds the module that the user knows.
    """
    line, path = source_line(node.meta.get("stack_trace") or ""), _module_path(node, root)
    if line and path:
        return f"{line} in {path}"
    return line or (f"in {path}" if path else "")


def source_line(stack_trace: str) -> str:
    """ "file.py:line" of the innermost frame outside torch and this package; "" when there is none."""
    frames = [f for f in _FRAME.findall(stack_trace) if not f[0].startswith((*HIDDEN_FOLDERS, "<"))]
    return f"{Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""


def _module_path(node: fx.Node, root: str) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    return "" if path + "." == root else path.removeprefix(root)
