"""The 4-bit linear layer's schedules for a GPU, thread after thread: few rows and many, by each kind of tensor core.

The reference is the layer in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.kernels.blocks.linear_int4 import linear_int4
from planish.codegen.kernels.blocks.linear_int4_layer import LEAST, PLANES, configure
from planish.codegen.kernels.blocks.linear_int4_packing import CHUNKS, BlockInt4Layout
from planish.codegen.runtime.executable import Executable
from planish.ir import Builder, Dense, Function, GroupedInt, InMemory, Module, Param, ParamRef, TensorType
from planish.ir.ops import QuantizedLinear
from planish.ir.types import symbol
from planish.targets.cuda.processors import find_processor
from planish.targets.cuda.target import CudaOnHost
from planish.testing.compiled import call
from planish.testing.four_bits import distance_allowed, exact
from planish.testing.serial_kernels import serial

pytestmark = pytest.mark.full

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ROWS = (1, 2, 3, 8, 9, 16, 17, 33, 64, 65, 100, 129, 257)
# A layer is wide or narrow beside the machine that runs it, and its schedules differ.
MACHINES = {
    "groups": replace(find_processor("sm_90"), multiprocessors=1),
    "groups, narrow": find_processor("sm_90"),
    "warps": replace(find_processor("sm_80"), multiprocessors=1),
    "warps, narrow": find_processor("sm_89"),
}


@dataclass(frozen=True)
class Layer:
    """A weight's sizes and the encoding of its scales; without one, all scales are 1 and results are integers."""

    outs: int
    ins: int
    group: int
    scales: torch.dtype | None = None
    bias: bool = False

    @property
    def weight(self) -> Param:
        encoding = GroupedInt(4, self.group, self.scales or F32)
        values = torch.randn(self.outs, self.ins, generator=torch.Generator().manual_seed(self.ins))
        storage = dict(encoding.encode(values))
        if self.scales is None:
            storage["scales"] = torch.ones_like(storage["scales"])
        return Param(
            f"weight{self.outs}.{self.ins}", TensorType(F32, (self.outs, self.ins)), encoding, InMemory(storage)
        )

    @property
    def added(self) -> Param | None:
        if not self.bias:
            return None
        values = torch.randn(self.outs, generator=torch.Generator().manual_seed(self.outs))
        stored = InMemory({"values": values})
        return Param(f"bias{self.outs}.{self.ins}", TensorType(F32, (self.outs,)), Dense(F32), stored)

    def function(self, name: str) -> Function:
        builder, rows = Builder(name), symbol("M")
        x = builder.input("x", TensorType(torch.int8, (rows, self.ins)))
        scale = builder.input("scale", TensorType(F32, (rows, 1)))
        weight, bias = (None if p is None else ParamRef(p.name, p.type) for p in (self.weight, self.added))
        return builder.finish(builder.node(QuantizedLinear(), x, scale, weight, bias).outputs, ["y"])

    def inputs(self, rows: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(rows)
        codes = torch.randint(-127, 128, (rows, self.ins), generator=generator).to(torch.int8)
        scales = torch.ones(rows, 1) if self.scales is None else torch.rand(rows, 1, generator=generator)
        return [codes, scales]


# Chunks of 128, 64 and 32; groups of one chunk, of parts of it and of several.
LAYERS = {
    "whole": Layer(128, 512, 128),
    "chunks": Layer(72, 384, 128, F16, bias=True),
    "segments": Layer(64, 256, 32, F32),
    "units": Layer(136, 640, 32, F16, bias=True),
    "parts": Layer(72, 2048, 32, F16),
    "several": Layer(80, 512, 256, BF16),
    "small": Layer(24, 192, 96, F16, bias=True),
    "middle": Layer(37, 320, 64, BF16, bias=True),
    "integers": Layer(40, 384, 64),
}


@cache
def module() -> Module:
    params = {p.name: p for layer in LAYERS.values() for p in (layer.weight, layer.added) if p is not None}
    return Module({name: layer.function(name) for name, layer in LAYERS.items()}, params)


@cache
def on_machine(machine: str, backwards: bool) -> Executable:
    return build(module(), CudaOnHost(MACHINES[machine], backwards)).load()


# Narrow layers differ in how the columns are shared out, which is the same for both kinds of tensor core.
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "machine", [m if m != "warps, narrow" else pytest.param(m, marks=pytest.mark.nightly) for m in MACHINES]
)
def test_every_schedule_is_the_layer_up_to_rounding(machine: str, name: str) -> None:
    layer = LAYERS[name]
    for rows in ROWS:
        inputs = layer.inputs(rows)
        (got,) = call(on_machine(machine, False), name, inputs)
        distance = (got.double() - exact(layer.weight, layer.added, *inputs)).abs()
        limits = CudaOnHost(MACHINES[machine]).blocks
        assert bool((distance <= distance_allowed(layer.weight, layer.added, *inputs, limits)).all()), rows


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "machine", [m if m == "groups" else pytest.param(m, marks=pytest.mark.nightly) for m in MACHINES]
)
def test_the_order_of_the_threads_does_not_show(machine: str, name: str) -> None:
    for rows in ROWS:
        inputs = LAYERS[name].inputs(rows)
        (one,), (other,) = (call(on_machine(machine, backwards), name, inputs) for backwards in (False, True))
        assert torch.equal(one.view(torch.int32), other.view(torch.int32)), rows


@pytest.mark.parametrize("tile", PLANES, ids=str)
def test_every_tile_of_scaled_weights_is_the_layer_up_to_rounding(tile: tuple[int, int]) -> None:
    """Each by itself: on a machine, the shape and the rows say which are taken."""
    layer, limits = Layer(24, 4 * LEAST * CHUNKS[0], 32, F16), CudaOnHost().blocks
    assert limits is not None
    config = configure(BlockInt4Layout(layer.outs, layer.ins, layer.group, "float16"), False, limits)
    assert tile in config.planes
    kernel = serial(lambda: linear_int4(replace(config, planes=(tile,))))
    weight, rows = layer.weight, 8 * tile[0] + 1
    inputs, got = layer.inputs(rows), torch.empty(rows, layer.outs)
    kernel(*inputs, config.layout.pack(weight.storage()["values"], weight.storage()["scales"]), got)
    distance = (got.double() - exact(weight, None, *inputs)).abs()
    assert bool((distance <= distance_allowed(weight, None, *inputs, limits)).all())
