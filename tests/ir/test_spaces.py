"""The spaces of small models: found from the graph alone, with what may be done to each and what forbids more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from planish.ir import Builder, Interpreter, Module, TensorType, dense_param
from planish.ir.ops import Linear, RmsNorm, Slot, aten
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.spaces.laws import Family
from planish.testing.acting import turned
from planish.testing.tiny_decoder import tiny_decoder


def of(spaces: Spaces, name: str, axis: int) -> tuple[Space, ...]:
    return spaces.of(("param", name), axis)


def reasons(space: Space) -> set[str]:
    return {"border" if limit.node is None else limit.node.op.name for limit in space.limits}


@pytest.fixture(scope="module")
def decoder() -> Spaces:
    return find_spaces(tiny_decoder())


def test_the_residual_stream_is_one_space(decoder: Spaces) -> None:
    (residual,) = of(decoder, "embedding", 1)
    layers = [(f"{n}.{name}", axis) for n in range(2) for name, axis in (
        ("q", 1), ("k", 1), ("v", 1), ("o", 0), ("gate", 1), ("up", 1), ("down", 0), ("norm.attention", 0), ("norm.mlp", 0),
    )]  # fmt: skip
    assert set(residual.parameters) == {("embedding", 1), ("norm", 0), *layers}
    assert residual.size == 16 and residual.family == Family.PERMUTATION and reasons(residual) == {"rms_norm"}


def test_heads_values_and_the_hidden_layer(decoder: Spaces) -> None:
    heads, size = of(decoder, "0.v", 0)
    assert (heads.size, size.size) == (2, 4) and size.family == Family.GENERAL and heads.family == Family.PERMUTATION
    assert set(size.parameters) == {("0.v", 0), ("0.o", 1)} and set(heads.parameters) == {
        ("0.q", 0),
        ("0.k", 0),
        ("0.v", 0),
        ("0.o", 1),
    }
    shared, again, back = of(decoder, "0.o", 1)
    assert shared is heads and back is size and again.size == 2
    (hidden,) = of(decoder, "0.down", 1)
    assert set(hidden.parameters) == {("0.gate", 0), ("0.up", 0), ("0.down", 1)}
    # up and down may be scaled against each other, the gate may not.
    assert hidden.family == Family.PERMUTATION and reasons(hidden) == {"gated_activation"}
    (vocabulary,) = of(decoder, "embedding", 0)
    assert vocabulary.family == Family.FIXED and "border" in reasons(vocabulary)


def test_pairs_of_a_rotary_embedding_move_with_their_frequencies(decoder: Spaces) -> None:
    _, halves, pairs = of(decoder, "0.k", 0)
    assert (halves.size, pairs.size) == (2, 2) and halves.family == Family.FIXED
    assert pairs.family == Family.PERMUTATION and ("inv_freq", 0) in pairs.parameters


def test_without_gains_the_residual_stream_may_be_rotated() -> None:
    (residual,) = of(find_spaces(without_gains()), "up", 1)
    assert residual.family == Family.ORTHOGONAL and reasons(residual) == {"rms_norm"}


def without_gains(unknown: str | None = None) -> Module:
    """A residual block on a linear map, with an operation that declares nothing on the stream or beside it."""
    shapes = {"first": (8, 5), "up": (12, 8), "down": (8, 12), "last": (3, 8)}
    generator = torch.Generator().manual_seed(1)
    module = Module({}, {n: dense_param(n, torch.randn(s, generator=generator)) for n, s in shapes.items()})
    b, ref = Builder("forward"), module.param_ref
    h = b.emit(Linear(), b.input("x", TensorType(torch.float32, (2, 5))), ref("first"), None)
    if unknown == "on":
        h = b.emit(aten("cumsum.default", Slot(0), 1), h)
    up = b.emit(Linear(), b.emit(RmsNorm(1e-5), h, None), ref("up"), None)
    if unknown == "beside":
        up = b.emit(aten("cumsum.default", Slot(0), 1), up)
    h = b.emit(aten("add.Tensor", Slot(0), Slot(1)), h, b.emit(Linear(), up, ref("down"), None))
    y = b.emit(Linear(), b.emit(RmsNorm(1e-5), h, None), ref("last"), None)
    return module.with_function(b.finish([y], ["y"]))


def test_an_unknown_operation_fixes_what_it_touches_and_is_named() -> None:
    (on,), (hidden,) = (of(find_spaces(without_gains("on")), n, 1) for n in ("up", "down"))
    assert on.family == Family.FIXED and reasons(on) == {"aten"} and hidden.family == Family.GENERAL
    assert "declares nothing" in on.limits[0].sentence
    (residual,), (beside,) = (of(find_spaces(without_gains("beside")), n, 1) for n in ("up", "down"))
    assert residual.family == Family.ORTHOGONAL and beside.family == Family.FIXED


def test_indices_that_are_read_in_two_orders_are_fixed() -> None:
    weight = dense_param("weight", torch.randn(12, 5, generator=torch.Generator().manual_seed(1)))
    module = Module({}, {"weight": weight})
    b = Builder("forward")
    y = b.emit(Linear(), b.input("x", TensorType(torch.float32, (2, 5))), module.param_ref("weight"), None)
    views = [b.emit(aten("view.default", Slot(0), [2, *sizes]), y) for sizes in ((3, 4), (4, 3))]
    sums = [b.emit(aten("sum.dim_IntList", Slot(0), [1, 2]), view) for view in views]
    spaces = find_spaces(module.with_function(b.finish(sums, ["one", "other"])))
    assert {space.family for space in of(spaces, "weight", 0)} == {Family.FIXED}
    assert any("in another order" in limit.sentence for space in of(spaces, "weight", 0) for limit in space.limits)


@pytest.mark.parametrize("made", [tiny_decoder, without_gains])
def test_elements_of_the_declared_groups_leave_the_function_alone(made: Callable[[], Module]) -> None:
    module = made()
    spaces = find_spaces(module)
    function = module.functions["forward"]
    inputs = {
        "input_ids": torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.ones(2, 5, dtype=torch.bool),
        "x": torch.randn(2, 5, generator=torch.Generator().manual_seed(0)),
    }
    given = {value.name: inputs[value.name] for value in function.inputs}
    want = Interpreter(module, promote=True).run("forward", given)[0]
    tried = [space for space in spaces.spaces if space.family > Family.FIXED and space.parameters and space.size != 1]
    for space in tried:
        got = Interpreter(turned(module, spaces, space, 1), promote=True).run("forward", given)[0]
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4), (space.family, space.parameters)
    assert len(tried) >= 2
