"""Names of Arm processors, what LLVM is told of them, and refusals."""

from __future__ import annotations

import pytest
from tvm.target import codegen as llvm

from planish.ir import InputError, UnsupportedError
from planish.targets import open_target
from planish.targets.arm.processors import BASELINE, PROCESSORS, SWITCHES, find_processor
from planish.targets.arm.target import ArmTarget


@pytest.mark.parametrize("name", sorted(PROCESSORS))
@pytest.mark.parametrize("switch", ["", *(f"{sign}{s}" for s in SWITCHES if s != "dotprod" for sign in ("+", "+no"))])
def test_llvm_compiles_for_the_stated_features_and_no_others(name: str, switch: str) -> None:
    target = open_target(f"arm:{name}{switch}")
    seen = set(map(str, llvm.llvm_get_cpu_features(target.tvm_target())))
    watched = BASELINE | set(SWITCHES)
    assert seen & watched == target.features() & watched
    if switch:
        feature = switch.removeprefix("+").removeprefix("no")
        assert (feature in target.features()) == (not switch.startswith("+no"))


def test_the_tile_is_the_best_one_that_the_processor_has() -> None:
    assert ArmTarget().int8_tile.name == "sdot"
    assert open_target("arm:generic+i8mm").int8_tile.name == "smmla"
    assert open_target("arm:apple-m2+noi8mm").int8_tile.name == "sdot"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("arm:cortexa76", "there is no Arm processor 'cortexa76'; did you mean 'cortex-a76'?"),
        ("arm:cortex-a76+dotprof", "there is no Arm feature 'dotprof'; did you mean 'dotprod'?"),
        ("amr", "there is no target 'amr'; did you mean 'arm'?"),
        ("host:znver4", "the target 'host' takes no processor, but 'znver4' was given"),
    ],
)
def test_unknown_names(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        open_target(text)
    assert str(caught.value) == sentence


def test_a_processor_without_dot_products() -> None:
    with pytest.raises(UnsupportedError, match="no dot product of bytes"):
        open_target("arm:cortex-a76+nodotprod")


def test_the_name_says_what_was_asked_for() -> None:
    assert open_target("arm").name == "arm:generic"
    assert find_processor("cortex-x2+nosve2").name == "cortex-x2+nosve2"
