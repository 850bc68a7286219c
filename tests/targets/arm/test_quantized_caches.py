"""Caches in few bits on an emulated Arm machine: the law of splits, and results near the interpreter's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import planish
from planish.codegen.build import build
from planish.ir import Interpreter
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.passes.quantize_cache import QuantizeCache
from planish.targets import open_target
from planish.testing.agreement import float_fault
from planish.testing.emulated import BUILDS, machine, needs_arm
from planish.testing.splits import assert_split_has_the_bits
from planish.testing.tiny_decoder import tiny_decoder

pytestmark = needs_arm


def test_a_small_decoder_in_two_formats(tmp_path: Path) -> None:
    derived = DerivePrograms().apply(tiny_decoder(layers=1, size=12), Context()).module
    module = QuantizeCache(keys="int4", values="fp8").apply(derived, Context()).module
    folder = build(module, open_target("arm:generic")).save(tmp_path / "artifact")
    program: Any = planish.load(folder, device=machine(BUILDS["generic"]))
    ids = torch.randint(0, 11, (1, 19), generator=torch.Generator().manual_seed(3))
    (whole,) = program.session(1).read_all(ids.tolist())
    assert_split_has_the_bits(program.session(1), ids.tolist(), [1, 9, 18], [whole])
    inputs = {"input_ids": ids, "start": torch.tensor([0]), "length": torch.tensor([19])}
    plain, exact = (Interpreter(module, promote=p).run("extend", inputs, bindings={"C": 19})[0] for p in (False, True))
    assert not float_fault(torch.from_numpy(whole), plain[0], exact[0])
