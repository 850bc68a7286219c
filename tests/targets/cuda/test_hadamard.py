"""The transform in blocks of threads, thread after thread in both orders: the bits of the host's kernel, alone and with the
quantisation behind it; and what ptxas says of rows as long as networks have them."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.kernels.blocks.hadamard import Plan
from planish.codegen.kernels.hadamard import Hadamard as Config
from planish.codegen.runtime.executable import Executable
from planish.ir.ops import Hadamard, QuantizeActivation
from planish.targets.cuda.processors import find_processor
from planish.targets.cuda.target import CudaOnHost, CudaTarget
from planish.testing.compiled import call, compiled
from planish.testing.gpus import need_nvcc
from planish.testing.kernel_cases import Case, module_of, tensor

pytestmark = pytest.mark.full

# (block, width): fewer columns than threads and more, columns that no thread count divides, sums that several threads share.
SIZES = [
    (1, 5),
    (2, 6),
    (16, 64),
    (512, 1536),
    (8192, 8192),
    (12, 36),
    (20, 20),
    (28, 140),
    (172, 172),
    (576, 576),
    (6400, 6400),
]
LONG = [(3072, 3072), (5120, 5120), (6400, 6400), (11008, 11008), (13824, 13824), (14336, 14336), (18944, 18944)]


def cases(sizes: list[tuple[int, int]]) -> dict[str, Case]:
    alone = {f"transform_{block}_{width}": Case(Hadamard(block), (tensor(2, width),)) for block, width in sizes}
    behind = {
        f"quantize_{block}_{width}": Case(QuantizeActivation(), (tensor(2, width),), behind=Hadamard(block))
        for block, width in sizes
    }
    return {**alone, **behind}


@cache
def machines() -> list[Executable]:
    module = module_of(cases(SIZES))
    return [compiled(module), *(build(module, CudaOnHost(backwards=b)).load() for b in (False, True))]


@pytest.mark.parametrize("name", cases(SIZES))
def test_it_has_the_bits_of_the_host(name: str) -> None:
    (x,) = cases(SIZES)[name].inputs(1)
    want, *found = (call(machine, name, [x]) for machine in machines())
    for got in found:
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("processor", ["sm_80", "sm_90"])
def test_long_rows_fit_into_registers(processor: str) -> None:
    need_nvcc()
    target = CudaTarget(find_processor(processor))
    build(module_of(cases(LONG)), target)
    assert len(target.resources) == 2 * len(LONG)
    assert not [r for r in target.resources if r.spill_stores or r.spill_loads or r.stack]


@pytest.mark.parametrize(
    ("block", "width", "bytes"), [(8192, 65536, 232448), (8192, 8192, 32768), (172, 172 * 512, 10**6)]
)
def test_rows_that_are_too_long_are_refused(block: int, width: int, bytes: int) -> None:
    with pytest.raises(ValueError, match=f"rows of {width} elements are too long"):
        Plan(Config(width, block, CudaOnHost().float_tile), bytes)
