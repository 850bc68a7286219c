"""Programs with transforms at run time, compiled: the law of splits bit by bit, with keys held transformed in few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.codegen.build import build
from planish.passes.dead_code import DeadCode
from planish.passes.derive_programs import DerivePrograms
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.passes.online_hadamard import OnlineHadamard
from planish.passes.quantize import Quantize
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_cache import QuantizeCache
from planish.testing.compiled import host
from planish.testing.splits import assert_split_has_the_bits
from planish.testing.tiny_decoder import tiny_decoder


@pytest.mark.full
def test_how_a_text_is_cut_into_calls_does_not_show() -> None:
    module = tiny_decoder(hidden=64, size=16, inner=160, window=5, layers=1)
    passes = [
        FoldNormGains(),
        OnlineHadamard(keys=True),
        Quantize(format=4, group=32),
        QuantizeActivations(),
        DeadCode(),
    ]
    caches = [DerivePrograms(), QuantizeCache(keys="int4", values="int8")]
    module, _ = PassManager([*passes, *caches], check=False).run(module)
    model: Any = build(module, host()).load()
    steps = model.manifest["report"]["functions"]["decode"]["steps"]
    found = [step["operations"] for step in steps if "hadamard" in step["operations"]]
    # Queries, keys, and what the down projection reads, the last one within the kernel that quantises it.
    assert found == [["hadamard"], ["hadamard"], ["hadamard", "quantize_activation"]]
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 11, (23,), generator=generator).tolist() for _ in range(2)]
    whole = model.session(2).read_all(rows)
    assert_split_has_the_bits(model.session(2), rows, [1, 2, 9, 22], whole)
