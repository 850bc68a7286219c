"""TVM's passes from emitted kernels to CUDA C++.

TVM's own list also inserts barriers and lets shared buffers share memory. Here barriers stand where a kernel puts them and
shared memory is laid out by the kernel, so those passes are left out.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx

from planish.codegen.kernel_passes import register_passes

PIPELINE = "planish_cuda"


def _passes() -> list[Any]:
    return [
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
    ]


register_passes(PIPELINE, _passes)
