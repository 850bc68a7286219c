"""Every ATen operator that compiled code serves, against the interpreter, on calls that the operators' samplers draw."""

from __future__ import annotations

import random
from typing import TypeVar

import numpy as np
import pytest
import torch

from planish.codegen.aten.movement import COPIES, VIEWS
from planish.codegen.aten.reductions import REDUCTIONS
from planish.codegen.aten.tables import POINTWISE
from planish.codegen.decompositions import DECOMPOSITIONS
from planish.codegen.registry import families
from planish.ir import Module, Sample, TensorType
from planish.ir.ops import Aten, Slot, aten
from planish.ir.ops.aten_samples import ATEN_SAMPLES
from planish.testing.compiled import call, compiled, faults, one_call
from planish.testing.tensors import operand_tensors

T = TypeVar("T")
SHARDS = 6


class Seeded:
    """The operations' `Chooser` over a seeded generator: one compilation serves many samples, so nothing can shrink."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def choice(self, options: list[T]) -> T:
        return self.random.choice(options)

    def boolean(self) -> bool:
        return self.random.random() < 0.5


def check(samples: dict[str, Sample], seed: int) -> None:
    """Compile one function for each sample and hold each against the interpreter, on integers and on fractions."""
    functions = {name: one_call(name, s.op, s.operands) for name, s in samples.items()}
    module = Module(functions)
    executable = compiled(module)
    generator = torch.Generator().manual_seed(seed)
    broken = []
    for name, sample in samples.items():
        tensors = [t for t in operand_tensors(sample.op, sample.operands, generator) if t is not None]
        for inputs in (tensors, [t * 0.37 if t.dtype.is_floating_point else t for t in tensors]):
            found = faults(module, name, inputs, call(executable, name, inputs))
            broken += [f"{name} {sample.op} on {[str(o) for o in sample.operands]}: {fault}" for fault in found]
    assert not broken, "\n".join(broken)


def draw(overloads: list[str], seed: int, count: int) -> dict[str, Sample]:
    chooser = Seeded(seed)
    return {
        f"{overload.replace('.', '_')}_{number}": Aten.sample_overload(overload, chooser)
        for overload in overloads
        for number in range(count)
    }


@pytest.mark.parametrize("shard", range(SHARDS))
def test_drawn_calls(shard: int) -> None:
    check(draw(sorted(ATEN_SAMPLES)[shard::SHARDS], seed=shard, count=1), shard)


@pytest.mark.full
@pytest.mark.parametrize("shard", [n if n < 2 else pytest.param(n, marks=pytest.mark.nightly) for n in range(SHARDS)])
def test_many_drawn_calls(shard: int) -> None:
    check(draw(sorted(ATEN_SAMPLES)[shard::SHARDS], seed=100 + shard, count=5), shard)


def test_no_result_is_an_argument() -> None:
    """Views cost nothing inside a function; what leaves it is memory of its own."""
    kind = TensorType(torch.float32, (4, 6))
    views = {"flat": aten("reshape.default", Slot(0), [24]), "led": aten("unsqueeze.default", Slot(0), 0)}
    executable = compiled(Module({name: one_call(name, op, [kind]) for name, op in views.items()}))
    for name in views:
        x = np.arange(24, dtype=np.float32).reshape(4, 6)
        (y,) = executable.programs[name]([x])
        assert np.array_equal(y.ravel(), x.ravel()) and not np.shares_memory(x, y)


def test_a_function_may_be_called_like_a_kernel() -> None:
    kind = TensorType(torch.float32, (3, 5))
    op = aten("matmul.default", Slot(0), Slot(1))
    module = Module({name: one_call(name, op, [kind, kind.with_shape((5, 4))]) for name in ("matmul", "forward")})
    executable = compiled(module)
    inputs = [torch.randn(3, 5), torch.randn(5, 4)]
    for name in module.functions:
        assert not faults(module, name, inputs, call(executable, name, inputs))


def test_every_sampled_operator_is_served() -> None:
    """The operators that have axis rules occur in traced models: none of them may stop a compilation."""
    known = {*POINTWISE, *REDUCTIONS, *DECOMPOSITIONS, *VIEWS, *COPIES}
    known |= {name.removeprefix("aten.") for family in families() for name in family.ops}
    assert sorted(set(ATEN_SAMPLES) - known) == []
