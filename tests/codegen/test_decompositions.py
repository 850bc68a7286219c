"""Model operations that no kernel fits, written out: compiled, they still are what the interpreter says."""

from __future__ import annotations

import pytest
import torch

from planish.ir import Builder, Module, TensorType
from planish.ir.ops import Attention
from planish.testing.compiled import call, compiled, faults

F32, I64 = torch.float32, torch.int64


@pytest.mark.full
@pytest.mark.parametrize("length", [1, 2, 4, 7])
@pytest.mark.parametrize("mask", [{}, {"chunk": 2}, {"window": 3}, {"causal": False}], ids=str)
def test_attention_with_slopes_computed_at_run_time(length: int, mask: dict[str, int]) -> None:
    """More keys than queries, fewer, and as many; keys that no query sees hold NaN."""
    keys, builder = 4, Builder("attend")
    q = builder.input("q", TensorType(F32, (2, length, 2, 5)))
    k, v = (builder.input(n, TensorType(F32, (2, keys, 1, 5))) for n in "kv")
    start, kv_length = (builder.input(n, TensorType(I64, (2,))) for n in ("start", "kv_length"))
    slopes = builder.input("slopes", TensorType(F32, (2,)))
    op = Attention(scale=0.4, **mask)  # type: ignore[arg-type]
    node = builder.node(op, q, k, v, None, start, kv_length, slopes, None, None)
    module = Module({"attend": builder.finish(node.outputs, ["y"])}, {})
    executable = compiled(module)
    for first in range(4):
        generator = torch.Generator().manual_seed(first)
        tensors = [torch.randn(2, n, h, 5, generator=generator) for n, h in ((length, 2), (keys, 1), (keys, 1))]
        lengths = torch.tensor([keys, 2])
        for tensor in tensors[1:]:
            tensor[1, 2:] = float("nan")
        inputs = [*tensors, torch.tensor([first, 0]), lengths, torch.rand(2, generator=generator)]
        assert not faults(module, "attend", inputs, call(executable, "attend", inputs))
