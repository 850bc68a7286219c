"""Every kernel cut for a GPU against the interpreter: thread after thread in both orders, and on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.runtime.executable import Executable, open_artifact
from planish.ir import Param, TensorType
from planish.targets import open_target
from planish.targets.cuda.target import CudaOnHost
from planish.testing.compiled import call, faults
from planish.testing.four_bits import distance_allowed, exact
from planish.testing.gpus import need_gpu, need_nvcc
from planish.testing.kernel_cases import INTEGERS, everything, module_of

pytestmark = [pytest.mark.full, pytest.mark.first]

INT4 = {name: case for name, case in INTEGERS.items() if case.op.name == "quantized_linear"}


@cache
def _thread_by_thread(backwards: bool = False) -> Executable:
    return build(module_of(everything()), CudaOnHost(backwards=backwards)).load()


def _in_order(folder: Path) -> Executable:
    return _thread_by_thread()


def _on_gpu(folder: Path) -> Executable:
    gpu = need_gpu()
    need_nvcc()
    (architecture,) = gpu.features() or ()
    artifact = build(module_of(everything()), open_target(f"cuda:{architecture}"))
    return open_artifact(artifact.save(folder / "kernels"), device=gpu)


MACHINES: dict[str, Callable[[Path], Executable]] = {"thread by thread": _in_order, "GPU": _on_gpu}


@pytest.fixture(scope="module", params=list(MACHINES))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return MACHINES[request.param](tmp_path_factory.mktemp("cuda"))


def test_every_kernel_agrees_with_the_interpreter(machine: Executable) -> None:
    module, broken = module_of(everything()), []
    for number, (name, case) in enumerate(everything().items()):
        inputs = case.inputs(number)
        found = faults(module, name, inputs, call(machine, name, inputs))
        broken += [f"{name} {case.op} on {[str(t) for t in case.types]}: {fault}" for fault in found]
    assert not broken, "\n".join(broken)


def test_four_bits_are_the_layer_up_to_rounding(machine: Executable) -> None:
    for number, (name, case) in enumerate(INT4.items()):
        inputs = case.inputs(number)
        (got,) = call(machine, name, inputs)
        weight, bias = case.operands[2:]
        assert isinstance(weight, Param) and not isinstance(bias, TensorType)
        distance = (got.double() - exact(weight, bias, *inputs)).abs()
        limits = CudaOnHost().blocks
        assert bool((distance <= distance_allowed(weight, bias, *inputs, limits)).all()), name


# By day the kernels whose threads work together are held to that in the tests of their own.
@pytest.mark.nightly
def test_results_do_not_depend_on_the_order_of_the_threads() -> None:
    one, other = _thread_by_thread(), _thread_by_thread(backwards=True)
    for number, (name, case) in enumerate(everything().items()):
        inputs = case.inputs(number)
        for a, b in zip(call(one, name, inputs), call(other, name, inputs), strict=True):
            assert bits(a) == bits(b), name


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
