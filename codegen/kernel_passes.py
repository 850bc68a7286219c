"""Lists of TVM's passes from emitted kernels to code: how one is registered, and the one for processors.

TVM's own list is for schedules: it also looks for the part of each buffer that is used, for threads, software pipelines and
matrix layouts. Kernels here say what they mean, and such a search costs more than all passes that they need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

PIPELINE = "planish_processor"


def _passes() -> list[Any]:
    return [
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]


def register_passes(name: str, passes: Callable[[], list[Any]]) -> None:
    """Add a list of passes for kernels to TVM's table of them; what TVM does after them stays its own."""

    def pipeline() -> tuple[Any, Any, Any]:
        whole = tvm.transform.Sequential(passes())
        return whole, s_tir.pipeline.finalize_host_passes, s_tir.pipeline.finalize_device_passes

    compilation_pipeline.PIPELINE_MAP[name] = pipeline


register_passes(PIPELINE, _passes)


def compile_kernels(functions: Any, target: Any) -> Any:
    """One PrimFunc, or a module of them, for a processor that TVM's ``target`` names: the library of their code."""
    return tvm.compile(functions, target=target, tir_pipeline=PIPELINE)
