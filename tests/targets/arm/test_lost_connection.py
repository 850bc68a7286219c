"""A device that goes away in the middle of a run: one clear error, and another device takes the artifact up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planish.codegen.build import build
from planish.codegen.runtime.executable import open_artifact
from planish.ir import InputError, Module
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.targets import open_target
from planish.targets.arm.emulator import Emulator
from planish.testing.compiled import compiled
from planish.testing.emulated import needs_arm
from planish.testing.tiny_decoder import tiny_decoder

pytestmark = needs_arm
PROMPT, NEW_TOKENS = [1, 5, 3], 12


def _generator() -> Module:
    return DerivePrograms().apply(tiny_decoder(), Context()).module


def test_a_lost_connection_and_a_retry(tmp_path: Path) -> None:
    module = _generator()
    host: Any = compiled(module)
    want = host.generate_ids(PROMPT, max_new_tokens=NEW_TOKENS, stop_tokens=())
    folder = build(module, open_target("arm")).save(tmp_path / "artifact")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with Emulator("neoverse-n1") as emulator:
        program: Any = open_artifact(folder, device=emulator.connect())
        stream = program.stream_ids(PROMPT, max_new_tokens=NEW_TOKENS, stop_tokens=())
        got = [next(stream), next(stream)]
    with pytest.raises(
        InputError, match=r"the device 127\.0\.0\.1:\d+ does not answer: .*see that its RPC server runs"
    ):
        next(stream)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with Emulator("neoverse-n1") as emulator:
        again: Any = open_artifact(folder, device=emulator.connect())
        whole = again.generate_ids(PROMPT, max_new_tokens=NEW_TOKENS, stop_tokens=())
    assert whole == want and got == want[:2]
