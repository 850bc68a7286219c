"""Every kernel in both Arm builds, on the emulated machine: against the interpreter, integers bit by bit against the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.runtime.executable import Executable, open_artifact
from planish.targets import open_target
from planish.testing.compiled import call, compiled, faults
from planish.testing.emulated import BUILDS, machine, needs_arm
from planish.testing.kernel_cases import INTEGERS, LOW_BITS, Case, everything, module_of

pytestmark = needs_arm
EXACT = {**INTEGERS, **LOW_BITS}
ALL = {**everything(), **EXACT}
# Products of matrices change products of integers and nothing else, and those of all encodings in one way: the rest of that
# build waits for the night.
PLAN = {
    "generic": ("generic", ALL),
    "generic+i8mm, integers": ("generic+i8mm", INTEGERS),
    "generic+i8mm": ("generic+i8mm", ALL),
}


@dataclass(frozen=True)
class OnArm:
    """Cases compiled for a build, on its machine."""

    cases: dict[str, Case]
    executable: Executable


@pytest.fixture(
    scope="module", params=[n if n != "generic+i8mm" else pytest.param(n, marks=pytest.mark.nightly) for n in PLAN]
)
def on_arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnArm:
    build_name, cases = PLAN[request.param]
    artifact = build(module_of(cases), open_target(f"arm:{build_name}"))
    folder: Path = artifact.save(tmp_path_factory.mktemp("arm") / "kernels")
    return OnArm(cases, open_artifact(folder, device=machine(BUILDS[build_name])))


@cache
def on_host() -> Executable:
    return compiled(module_of(EXACT))


def test_every_kernel_agrees_with_the_interpreter(on_arm: OnArm) -> None:
    module, broken = module_of(on_arm.cases), []
    for number, (name, case) in enumerate(on_arm.cases.items()):
        inputs = case.inputs(number)
        found = faults(module, name, inputs, call(on_arm.executable, name, inputs))
        broken += [f"{name} {case.op} on {[str(t) for t in case.types]}: {fault}" for fault in found]
    assert not broken, "\n".join(broken)


def test_integer_kernels_have_the_bits_of_the_host(on_arm: OnArm) -> None:
    """With scales of one the results are the accumulators; with real ones the stated chain of float operations."""
    host = on_host()
    exact = {name: case for name, case in EXACT.items() if name in on_arm.cases}
    for number, (name, case) in enumerate(exact.items()):
        inputs = case.inputs(number)
        for arm, want in zip(call(on_arm.executable, name, inputs), call(host, name, inputs), strict=True):
            assert torch.equal(arm, want), name
