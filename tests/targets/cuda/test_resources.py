"""What ptxas says of the kernels: registers suffice on every processor, and no kernel needs memory for its variables.

Except for angles. CUDA's library reduces large ones by a product with bits of 2/pi that it looks up; the product lies in an
array that is indexed at run time, which registers cannot be: five words of 64 bits for float64, seven of 32 bits in a frame
of 32 bytes for float32. ptxas may still find a way without. Small angles do not touch it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import planish
from planish.codegen.build import build
from planish.ir import Module, TensorType
from planish.ir.ops import Slot, aten
from planish.ir.types import dtype_name
from planish.model import Model
from planish.targets.cuda.compiler import Resources
from planish.targets.cuda.processors import PROCESSORS, find_processor
from planish.targets.cuda.target import CudaTarget
from planish.testing.compiled import one_call
from planish.testing.gpus import need_nvcc
from planish.testing.kernel_cases import everything, module_of

pytestmark = pytest.mark.full

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
FRAMES = {torch.float32: 32, torch.float64: 40}
"""Bytes of stack of a kernel with angles."""
ANGLES = {f"kernel_elementwise_{name}_kernel": name for name in ("cos", "sin", "tan")}


def resources(module: Module, processor: str) -> list[Resources]:
    need_nvcc()
    target = CudaTarget(find_processor(processor))
    build(module, target)
    assert target.resources
    return target.resources


def outside_registers(found: list[Resources]) -> str:
    """The kernels that spill, or have a frame and no angle, one a line."""
    return "\n".join(str(r) for r in found if r.spill_stores or r.spill_loads or (r.stack and r.kernel not in ANGLES))


# One of them by day: the code that is specific to a processor has tests of its own.
BY_DAY = ("sm_90",)
MACHINES = [p if p in BY_DAY else pytest.param(p, marks=pytest.mark.nightly) for p in PROCESSORS]


@pytest.mark.parametrize("processor", MACHINES)
def test_kernels_fit_into_registers(processor: str) -> None:
    complaint = outside_registers(resources(module_of(everything()), processor))
    assert not complaint, complaint


@pytest.mark.parametrize("dtype", FRAMES, ids=dtype_name)
@pytest.mark.parametrize("processor", MACHINES)
def test_angles_take_the_frame_of_their_reduction(processor: str, dtype: torch.dtype) -> None:
    functions = {
        name: one_call(name, aten(f"{name}.default", Slot(0)), [TensorType(dtype, (5,))]) for name in ANGLES.values()
    }
    found = resources(Module(functions), processor)
    assert {r.kernel for r in found} == ANGLES.keys()
    assert {r.stack for r in found} <= {0, FRAMES[dtype]}
    assert not outside_registers(found)


@cache
def small() -> Model:
    """The bundled model in 4 bits, ready to be compiled."""
    model = planish.trace(EXAMPLES / "tiny-llama", check=False)
    return planish.prepare(planish.compress(model, EXAMPLES / "recipes" / "w4.yaml", check=False), check=False)


@pytest.mark.nightly
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_bundled_model_fits_into_registers(processor: str) -> None:
    complaint = outside_registers(resources(small().module, processor))
    assert not complaint, complaint
