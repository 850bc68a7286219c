"""From the lowered module to an executable of the Relax virtual machine.

Kernels are written and fused before TVM sees them, so of its passes only those run that plan memory and turn Relax into
instructions.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from planish.codegen.target import Target


def _passes() -> list[Any]:
    transform = relax.transform
    return [
        # Views that were viewed again and never read.
        transform.DeadCodeElimination(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]


def compile_module(lowered: Any, target: Target) -> Any:
    """Compile a lowered module; the result can be exported as a shared library."""
    passes = tvm.transform.Sequential(_passes())
    with target.compiling():
        return relax.build(lowered, target.tvm_target(), relax_pipeline=passes, tir_pipeline=target.kernel_passes)
