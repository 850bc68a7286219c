"""One kernel of blocks of threads whose threads take turns, compiled for this processor as a build compiles it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm

from planish.codegen.dialect import speaking
from planish.targets.cuda.target import CudaOnHost


def serial(make: Callable[[], Any], backwards: bool = False) -> Any:
    """The kernel that `make` emits, called with torch tensors; `backwards`, its threads run in the other order."""
    target = CudaOnHost(backwards=backwards)
    with speaking(target.dialect):
        function = make()
    compiled = tvm.compile(function, target=target.tvm_target(), tir_pipeline=target.kernel_passes)
    return compiled[function.attrs["global_symbol"]]
