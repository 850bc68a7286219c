"""The pipelines that every model goes through: after tracing, and before code generation."""

from __future__ import annotations

from planish.passes.canonicalise import Canonicalise
from planish.passes.common_subexpressions import CommonSubexpressions
from planish.passes.dead_code import DeadCode
from planish.passes.derive_programs import DerivePrograms
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.fold_constants import FoldConstants
from planish.passes.fuse_horizontal import FuseHorizontal
from planish.passes.pass_base import Pass
from planish.passes.raise_model_ops import RaiseModelOps


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


def generation() -> list[Pass]:
    """From a causal forward to the programs that generate."""
    return [DerivePrograms()]


def lowering() -> list[Pass]:
    """What pays off on every machine, and leaves nothing unused behind."""
    return [CommonSubexpressions(), FoldBatchNorm(), FoldConstants(), FuseHorizontal(), Canonicalise(), DeadCode()]
