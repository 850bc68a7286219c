"""Attention in blocks of threads, run thread by thread on the processor: against the interpreter, in both orders of threads.

Sizes of a call choose the schedule: few queries, many in tiles, many in tiles whose keys are cut in parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.kernels import attention as kernels
from planish.codegen.kernels.blocks import attention as blocks
from planish.codegen.kernels.kv_cache import pack_cache
from planish.codegen.runtime.executable import Executable
from planish.codegen.target import BlockLimits
from planish.ir import Builder, Dense, Function, InMemory, Module, Param, ParamRef, TensorType
from planish.ir.ops import Attention
from planish.ir.types import symbol
from planish.targets.cuda.target import CudaOnHost
from planish.testing.compiled import call, faults, float_fault
from planish.testing.serial_kernels import serial

pytestmark = pytest.mark.full

F32 = torch.float32
PADDING, START, KV_LENGTH, SLOPES, SINKS, BIAS = range(3, 9)
CALLS = {"few": (2, 2, 70), "tiles": (2, 40, 67), "tiles in parts": (1, 37, 141), "one of each": (1, 1, 1)}
"""Batch, length, and capacity."""


@dataclass(frozen=True)
class Case:
    """One function: the operation, its sizes, and which optional operands it has."""

    op: Attention
    heads: int
    kv_heads: int
    size: int
    value_size: int
    optional: tuple[int, ...] = ()
    bias: tuple[bool, bool, bool, bool] = (True, True, True, True)
    shared: bool = False

    def types(self, batch: Any, length: Any, keys: Any) -> list[TensorType | None]:
        full = (batch, self.heads, length, keys)
        found: list[TensorType | None] = [
            TensorType(F32, (batch, length, self.heads, self.size)),
            TensorType(F32, (batch, keys, self.kv_heads, self.size)),
            TensorType(F32, (batch, keys, self.kv_heads, self.value_size)),
            TensorType(torch.bool, (batch, keys)),
            TensorType(torch.int64, (batch,)),
            TensorType(torch.int64, (batch,)),
            TensorType(F32, (self.heads,)),
            TensorType(F32, (self.heads,)),
            TensorType(F32, tuple(n if has else 1 for n, has in zip(full, self.bias))),
        ]
        return [t if n < PADDING or n in self.optional else None for n, t in enumerate(found)]

    def params(self, name: str) -> dict[int, Param]:
        generator = torch.Generator().manual_seed(self.heads)
        found = {}
        for n in set(self.optional) & {SLOPES, SINKS}:
            values = torch.rand(self.heads, generator=generator) * 0.2
            found[n] = Param(f"{name}.{n}", TensorType(F32, (self.heads,)), Dense(F32), InMemory({"values": values}))
        return found

    def function(self, name: str) -> Function:
        builder, params = Builder(name), self.params(name)
        operands: list[Any] = []
        for n, t in enumerate(self.types(symbol("B"), symbol("S"), symbol("C"))):
            if n in params:
                operands.append(ParamRef(params[n].name, params[n].type))
            elif self.shared and n == 2:
                operands.append(operands[1])
            else:
                operands.append(None if t is None else builder.input(f"x{n}", t))
        node = builder.node(self.op, *operands)
        return builder.finish(node.outputs, ["y"])

    def inputs(self, batch: int, length: int, keys: int) -> list[torch.Tensor]:
        generator, found = torch.Generator().manual_seed(length), []
        for n, t in enumerate(self.types(batch, length, keys)):
            if t is None or n in (SLOPES, SINKS) or (self.shared and n == 2):
                continue
            shape = t.concrete({})
            if n == PADDING:
                found.append(torch.rand(shape, generator=generator) < 0.7)
            elif n == START:
                found.append(torch.randint(0, keys, shape, generator=generator))
            elif n == KV_LENGTH:
                # One row of a batch sees nothing at all.
                found.append(torch.tensor([keys - keys // 9, 0][:batch]))
            else:
                found.append(torch.randn(shape, generator=generator))
        return found


CASES = {
    "plain": Case(Attention(scale=0.3), 4, 2, 20, 20),
    "cached": Case(Attention(scale=0.2, window=40), 3, 1, 7, 33, (START, KV_LENGTH, SINKS)),
    "both_ways": Case(Attention(scale=0.3, causal=False), 2, 2, 9, 8, (PADDING, BIAS), (True, False, True, True)),
    "all": Case(
        Attention(scale=0.3, window=50, chunk=64, softcap=3.0), 2, 1, 8, 16,
        (PADDING, START, KV_LENGTH, SLOPES, SINKS, BIAS), (False, True, False, False),
    ),
    "one_tensor": Case(Attention(scale=0.2), 7, 1, 20, 20, (PADDING, SLOPES), shared=True),
}  # fmt: skip


def everything() -> Module:
    params = {p.name: p for name, case in CASES.items() for p in case.params(name).values()}
    return Module({name: case.function(name) for name, case in CASES.items()}, params)


@cache
def executable(backwards: bool) -> Executable:
    return build(everything(), CudaOnHost(backwards=backwards)).load()


@pytest.mark.parametrize("sizes", CALLS)
@pytest.mark.parametrize("name", CASES)
def test_blocks_agree_with_the_interpreter_in_any_order_of_threads(name: str, sizes: str) -> None:
    inputs = CASES[name].inputs(*CALLS[sizes])
    got = call(executable(backwards=False), name, inputs)
    assert not faults(everything(), name, inputs, got)
    (other,) = call(executable(backwards=True), name, inputs)
    assert torch.equal(got[0].view(torch.int32), other.view(torch.int32))


@cache
def of_halves(dtype: str, shared: bool) -> tuple[kernels.Attention, Any]:
    config = kernels.configure(
        CudaOnHost().float_tile,
        heads=2,
        kv_heads=1,
        size=12,
        value_size=12,
        scale=0.3,
        cache_dtype=dtype,
        shared=shared,
    )
    # On so small a machine a part has several tiles of keys.
    return config, serial(lambda: blocks.attention(config, BlockLimits(99 << 10, 3)))


@pytest.mark.parametrize("sizes", list(CALLS)[:3])
@pytest.mark.parametrize(("dtype", "shared"), [("float16", False), ("bfloat16", True)])
def test_caches_of_halves_with_nan_where_nothing_is_seen(dtype: str, shared: bool, sizes: str) -> None:
    (batch, length, capacity), (config, kernel) = CALLS[sizes], of_halves(dtype, shared)
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(batch, length, 2, 12, generator=generator)
    kept = [torch.randn(batch, capacity, 1, 12, generator=generator) for _ in range(2 - shared)]
    kept = [x.to(getattr(torch, dtype)).float() for x in kept]
    start = torch.tensor([capacity - length - 9, -3][:batch])
    kv_length = start + length
    exact, plain = (
        Attention(scale=0.3).evaluate(q.to(d), kept[0].to(d), kept[-1].to(d), None, start, kv_length, None, None, None)[
            0
        ]
        for d in (torch.float64, F32)
    )
    for x in kept:
        x[torch.arange(capacity) >= kv_length.unsqueeze(1)] = float("nan")
    layouts = [config.values_layout] if shared else [config.keys_layout, config.values_layout]
    y = torch.full((batch, length, 2, 12), float("nan"))
    kernel(q, *(pack_cache(layout, x) for layout, x in zip(layouts, kept)), start, kv_length, y)
    assert not float_fault(y, plain, exact)


def test_heads_too_large_for_a_block_are_refused() -> None:
    config = kernels.configure(
        CudaOnHost().float_tile, heads=1, kv_heads=1, size=9000, value_size=8, scale=1.0, cache_dtype="float32"
    )
    assert blocks.tiling(config, BlockLimits(99 << 10, 1)) is None
    with pytest.raises(ValueError, match="heads of 9000 and 8 elements do not fit into a block of threads"):
        blocks.attention(config, BlockLimits(99 << 10, 1))
    assert blocks.tiling(replace(config, size=1024, value_size=1024), BlockLimits(163 << 10, 1)) is not None
