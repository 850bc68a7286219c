"""The spaces of whole models: one analysis for every architecture, and the groups it declares leave their logits alone."""

from __future__ import annotations

import pytest
import torch

from planish.ir import Interpreter
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.spaces.laws import Family
from planish.testing.acting import turned
from planish.testing.architectures import CAUSAL, ENCODERS, MIXTURES, traced_architecture

pytestmark = pytest.mark.full
# As others are, but for a window and biases.
ALIKE = ("mistral", "qwen2")


def reasons(space: Space) -> set[str]:
    return {"border" if limit.node is None else limit.node.op.name for limit in space.limits}


def with_size(spaces: Spaces, size: int, family: Family) -> list[Space]:
    return [s for s in spaces.spaces if s.size == size and s.family == family and s.parameters]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly if n in ALIKE else ()) for n in (*CAUSAL, *MIXTURES, *ENCODERS)]
)
def test_declared_groups_leave_the_logits_alone(name: str) -> None:
    module = traced_architecture(name)
    spaces, function = find_spaces(module), module.functions["forward"]
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs = {v.name: ids if v.name == "input_ids" else torch.ones(2, 7, dtype=v.type.dtype) for v in function.inputs}
    want = Interpreter(module, promote=True).run("forward", inputs)[0].double()
    tried = [s for s in spaces.spaces if s.family > Family.FIXED and s.size != 1 and s.parameters]
    for space in tried:
        got = Interpreter(turned(module, spaces, space, 1), promote=True).run("forward", inputs)[0].double()
        # Weights are rounded to float32 after an element of the group has acted on them.
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max()), (space.family, space.parameters)
    assert len(tried) >= 5
    if name not in ENCODERS:
        # The residual stream, with its gains, is one space of all layers, and no name was read to find it.
        (residual,) = with_size(spaces, 64, Family.PERMUTATION)
        assert reasons(residual) <= {"rms_norm", "layer_norm"} and len(residual.parameters) >= 10


def test_values_of_heads_take_every_matrix_and_queries_what_rope_leaves() -> None:
    found = {}
    for name in ("llama", "opt", "gpt2"):
        module = traced_architecture(name)
        found[name] = find_spaces(module)
    # Llama: values alone; without rotary embedding queries and keys too, and where one tensor holds both, rotations.
    assert len(with_size(found["llama"], 16, Family.GENERAL)) == 2
    assert len(with_size(found["opt"], 16, Family.GENERAL)) == 4
    assert len(with_size(found["gpt2"], 16, Family.GENERAL)) == 2
    assert len(with_size(found["gpt2"], 16, Family.ORTHOGONAL)) == 2
