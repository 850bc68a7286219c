"""The pipelines that every model goes through: after tracing, and before code generation."""

from __future__ import annotations

from planish.passes.canonicalise import Canonicalise
from planish.passes.common_subexpressions import CommonSubexpressions
from planish.passes.dead_code import DeadCode
from planish.passes.derive_programs import DerivePrograms
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.fold_constants import FoldConstants
from planish.passes.fuse_horizontal import FuseHorizontal
from planish.passes.narrow_attention import NarrowAttention
from planish.passes.pass_base import Pass
from planish.passes.raise_model_ops import RaiseModelOps

GENERATES = ("causal_lm", "seq2seq_lm")
"""The kinds of module, by their metadata, from which generation programs are derived."""


def raising(where: str | None) -> list[Pass]:
    """From traced ATen calls to model operations.

    Raising runs twice: some patterns show only after constants are folded (slopes, transposed weights) and views
    composed. `where` names the input that says which results matter (see `RaiseModelOps`).
    """
    clean: list[Pass] = [Canonicalise(), FoldConstants()]
    return [
        *clean,
        RaiseModelOps(where=where),
        *clean,
        RaiseModelOps(where=where),
        Canonicalise(),
        CommonSubexpressions(),
        DeadCode(),
    ]


def narrowing() -> list[Pass]:
    """What makes the states of programs derived later as narrow as they can be; before weights change their encoding."""
    return [NarrowAttention(), DeadCode()]


def generation(kind: str) -> list[Pass]:
    """From a causal forward to the programs that generate.

    `kind` is what the module's metadata call it: "causal_lm", or "seq2seq_lm" for one that also reads a source.
    """
    if kind != "seq2seq_lm":
        return [DerivePrograms()]
    return [
        DerivePrograms(
            tokens="decoder_input_ids",
            padding="decoder_attention_mask",
            source="input_ids",
            source_padding="attention_mask",
        )
    ]


def lowering() -> list[Pass]:
    """What pays off on every machine, and leaves nothing unused behind."""
    return [CommonSubexpressions(), FoldBatchNorm(), FoldConstants(), FuseHorizontal(), Canonicalise(), DeadCode()]
