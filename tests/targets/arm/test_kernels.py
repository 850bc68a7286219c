"""Every kernel in both Arm builds, on the emulated machine: against the interpreter, integers bit by bit against the host."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.runtime.executable import Executable, open_artifact
from planish.targets import open_target
from planish.testing.compiled import call, compiled, faults
from planish.testing.emulated import BUILDS, machine, needs_arm
from planish.testing.kernel_cases import INTEGERS, LOW_BITS, everything, module_of

pytestmark = needs_arm
CASES = {**everything(), **LOW_BITS}
EXACT = {**INTEGERS, **LOW_BITS}


@pytest.fixture(scope="module", params=list(BUILDS))
def on_arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Executable:
    artifact = build(module_of(CASES), open_target(f"arm:{request.param}"))
    folder: Path = artifact.save(tmp_path_factory.mktemp("arm") / "kernels")
    return open_artifact(folder, device=machine(BUILDS[request.param]))


@cache
def on_host() -> Executable:
    return compiled(module_of(EXACT))


def test_every_kernel_agrees_with_the_interpreter(on_arm: Executable) -> None:
    module, broken = module_of(CASES), []
    for number, (name, case) in enumerate(CASES.items()):
        inputs = case.inputs(number)
        found = faults(module, name, inputs, call(on_arm, name, inputs))
        broken += [f"{name} {case.op} on {[str(t) for t in case.types]}: {fault}" for fault in found]
    assert not broken, "\n".join(broken)


def test_integer_kernels_have_the_bits_of_the_host(on_arm: Executable) -> None:
    """With scales of one the results are the accumulators; with real ones the stated chain of float operations."""
    host = on_host()
    for number, (name, case) in enumerate(EXACT.items()):
        inputs = case.inputs(number)
        for arm, want in zip(call(on_arm, name, inputs), call(host, name, inputs), strict=True):
            assert torch.equal(arm, want), name
