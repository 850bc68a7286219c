"""Linear layers of few bits for a GPU: the bits of the stated arithmetic, thread after thread, for few rows and for many.

The arithmetic is that of `codegen/kernels/linear_low_bit.py`, which the processor's kernel is held to as well.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from planish.codegen.build import build
from planish.codegen.family import with_float_scales
from planish.codegen.runtime.executable import Executable
from planish.ir import Grouped, GroupedInt, Levels, Param, TensorType, UnsupportedError
from planish.targets.cuda.processors import PROCESSORS, find_processor
from planish.targets.cuda.target import CudaOnHost, CudaTarget
from planish.testing.compiled import call, compiled, faults
from planish.testing.float_kernels import fma
from planish.testing.gpus import need_nvcc
from planish.testing.kernel_cases import LOW_BITS, Case, low_bit_linear, module_of

pytestmark = pytest.mark.full

F32, BF16 = torch.float32, torch.bfloat16
ROWS = (1, 3, 8, 65)
DAY, NIGHT = "day", pytest.param("night", marks=pytest.mark.nightly)
_BY_DAY = ("int2g32", "int3g32", "int8g32", "int3z", "sign")


def at_every_height(outs: int, ins: int, encoding: Grouped) -> dict[str, Case]:
    return {f"{encoding}_{ins}_{rows}": low_bit_linear(rows, outs, ins, encoding, unit=False) for rows in ROWS}


# Groups that are cut into slots of 32 evenly, in an odd number and not at all; rounds and panels that are not full.
SHAPES: dict[str, Case] = {
    **at_every_height(65, 480, Levels("ternary", 160)),
    **at_every_height(64, 1024, GroupedInt(2, 256, BF16, True)),
    **at_every_height(70, 111, GroupedInt(3, 37, F32, True)),
    **at_every_height(37, 12, GroupedInt(8, 4, F32, True)),
}
MORE_SHAPES: dict[str, Case] = {
    **at_every_height(33, 2144, GroupedInt(7, 32)),
    **at_every_height(7, 192, GroupedInt(1, 64, F32, True)),
    **at_every_height(130, 60, GroupedInt(4, 20)),
    **at_every_height(1, 5, GroupedInt(5, 1, BF16)),
}
CASES = {
    "day": {name: case for name, case in LOW_BITS.items() if name.startswith(_BY_DAY)} | SHAPES,
    "night": {name: case for name, case in LOW_BITS.items() if not name.startswith(_BY_DAY)} | MORE_SHAPES,
}


@cache
def on_threads(when: str, backwards: bool) -> Executable:
    return build(module_of(CASES[when]), CudaOnHost(backwards=backwards)).load()


def weights_of(case: Case) -> tuple[Param, Param | None]:
    weight, bias = case.operands[2:]
    assert isinstance(weight, Param) and not isinstance(bias, TensorType)
    return with_float_scales(weight), bias


def stated(case: Case, codes: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
    """The sums of each group, exactly, then the chain of each result."""
    weight, bias = weights_of(case)
    assert isinstance(weight.encoding, Grouped)
    storage, group = weight.storage(), weight.encoding.group
    levels = weight.encoding.decode({**storage, "scales": torch.ones_like(storage["scales"])}, weight.type).long()
    shape = -1, group
    dots = torch.einsum("mgk,ngk->gmn", codes.long().unflatten(1, shape), levels.unflatten(1, shape)).numpy()
    scales, total = storage["scales"].float().numpy(), np.zeros(dots.shape[1:], np.float32)
    for number, dot in enumerate(dots):
        total = fma(dot.astype(np.float32), scales[None, :, number], total)
    result = total * x_scale.numpy() if bias is None else fma(total, x_scale.numpy(), bias.value().numpy()[None])
    return torch.from_numpy(result)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("when", [DAY, NIGHT])
def test_bits_are_those_of_the_stated_arithmetic(when: str, backwards: bool) -> None:
    broken = []
    for number, (name, case) in enumerate(CASES[when].items()):
        codes, scale = case.inputs(number)
        (got,) = call(on_threads(when, backwards), name, [codes, scale])
        if not torch.equal(got.view(torch.int32), stated(case, codes, scale).view(torch.int32)):
            broken.append(name)
    assert not broken, broken


@pytest.mark.parametrize("when", [DAY, NIGHT])
def test_results_agree_with_the_interpreter(when: str) -> None:
    module, broken = module_of(CASES[when]), []
    for number, (name, case) in enumerate(CASES[when].items()):
        inputs = case.inputs(number)
        broken += [f"{name}: {f}" for f in faults(module, name, inputs, call(on_threads(when, False), name, inputs))]
    assert not broken, "\n".join(broken)


def test_bits_are_those_of_the_processor() -> None:
    cases = {name: case for name, case in SHAPES.items() if name.startswith("int2z")}
    host = compiled(module_of(cases))
    for number, (name, case) in enumerate(cases.items()):
        inputs = case.inputs(number)
        (got,), (want,) = (call(e, name, inputs) for e in (on_threads("day", False), host))
        assert torch.equal(got.view(torch.int32), want.view(torch.int32)), name


@pytest.mark.parametrize("when", [DAY, NIGHT])
@pytest.mark.parametrize(
    "arch", [p if p == "sm_90" else pytest.param(p, marks=pytest.mark.nightly) for p in PROCESSORS]
)
def test_kernels_fit_into_registers(arch: str, when: str) -> None:
    need_nvcc()
    target = CudaTarget(find_processor(arch))
    build(module_of(CASES[when]), target)
    assert target.resources
    assert not [r for r in target.resources if r.stack or r.spill_stores or r.spill_loads]


def test_groups_whose_sums_leave_int32_are_refused() -> None:
    encoding = GroupedInt(8, 1 << 17, F32, True)
    case = low_bit_linear(1, 1, 1 << 17, encoding, unit=True)
    with pytest.raises(UnsupportedError, match=r"groups of 131072 elements as int8z.* use at most 66052"):
        build(module_of({"long": case}), CudaOnHost())
