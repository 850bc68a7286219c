"""Calibration data from a text file, by the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from planish.codegen.runtime.tokenizer import Tokenizer
from planish.ir import InputError
from planish.model import Model
from planish.passes.calibration import Calibration

BATCH_TOKENS = 4096
"""About so many in a batch: results of that many tokens are in memory at a time."""


def text_calibration(
    model: Model,
    text: str | Path,
    *,
    samples: int = 128,
    length: int = 512,
    seed: int = 0,
    memory: int = 1 << 30,
    workspace: Path | None = None,
) -> Calibration:
    """Windows of a text as inputs of `forward`.

    Each window is the beginning-of-sequence token, if the model has one, and tokens that follow each other in the text, from
    places drawn without overlap by `seed`.

    Args:
        model: traced from a checkpoint folder with a tokenizer.
        text: a UTF-8 file.
        samples: how many windows.
        length: tokens in a window.
        seed: of the places.
        memory: see `Calibration`.
        workspace: see `Calibration`.

    Raises:
        InputError: when the model has no tokenizer or does not read tokens alone, or the text cannot be read or is too short.
    """
    if samples < 1 or length < 2:
        raise InputError(f"{samples} windows of {length} tokens calibrate nothing; ask for at least 1 of 2")
    if model.folder is None:
        raise InputError("the model has no tokenizer for a calibration text; give batches of its inputs instead")
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the calibration text {path} cannot be read: {error}") from error
    ids = Tokenizer(model.folder).encode(content, special=False)
    first = model.module.metadata.get("bos_token_id")
    start = [first] if isinstance(first, int) else []
    run = length - len(start)
    runs = len(ids) // run
    if runs < samples:
        raise InputError(
            f"the calibration text {path} has {len(ids)} tokens, too few for {samples} windows of {length}; "
            f"give a longer text, or ask for at most {runs}"
        )
    places = torch.randperm(runs, generator=torch.Generator().manual_seed(seed))[:samples]
    windows = torch.tensor([[*start, *ids[place * run : (place + 1) * run]] for place in places.tolist()])
    batches = tuple(_inputs(model, rows) for rows in windows.split(max(1, BATCH_TOKENS // length)))
    return Calibration(batches, memory, workspace)


def _inputs(model: Model, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of `forward` for rows of tokens without padding."""
    inputs = {}
    for value in model.module.functions["forward"].inputs:
        if value.type.rank != 2 or value.type.dtype not in (torch.int64, torch.bool):
            raise InputError(
                f"the model reads {value.name!r} ({value.type}) besides tokens and a mask; give batches of its inputs instead"
            )
        inputs[value.name] = rows if value.type.dtype == torch.int64 else torch.ones_like(rows, dtype=torch.bool)
    return inputs
