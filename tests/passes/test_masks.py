"""Masks are described exactly as they mask, or not at all."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import Builder, Interpreter, Module, TensorType, Value, symbol
from planish.ir.ops import Attention, Slot, aten
from planish.passes.raising.index_terms import IndexTerms, axis
from planish.passes.raising.masks import Mask, describe, visible_where

B, S = symbol("B"), symbol("S")


class _Draft:
    """A mask computed in ATen calls on [1, 1, S, 1] queries and [1, 1, 1, S] keys."""

    def __init__(self) -> None:
        self.b = Builder("forward")
        self.padding = self.b.input("padding", TensorType(torch.bool, (B, S)))
        index = self.b.emit(aten("arange.default", S))
        self.query = self.b.emit(aten("view.default", Slot(0), [1, 1, S, 1]), index)
        self.key = self.b.emit(aten("view.default", Slot(0), [1, 1, 1, S]), index)

    def binary(self, overload: str, x: Value, y: Value) -> Value:
        return self.b.emit(aten(overload, Slot(0), Slot(1)), x, y)

    def condition(self, kind: str, size: int) -> Value:
        if kind == "causal":
            return self.binary("ge.Tensor", self.query, self.key)
        if kind == "window":
            return self.binary("lt.Tensor", self.binary("sub.Tensor", self.query, self.key), self._constant(size))
        if kind == "chunk":
            return self.binary(
                "eq.Tensor",
                *(self.b.emit(aten("floor_divide.default", Slot(0), size), i) for i in (self.query, self.key)),
            )
        return self.b.emit(aten("view.default", Slot(0), [B, 1, 1, S]), self.padding)

    def _constant(self, value: int) -> Value:
        return self.b.emit(aten("full.default", [], value, dtype=torch.int64))

    def additive(self, mask: Value, style: str) -> Value:
        if style == "where":
            return self.b.emit(aten("where.Scalar", Slot(0), 0.0, float("-inf")), mask)
        lowest = torch.finfo(torch.float32).min
        if style == "inverted":
            wide = self.b.emit(aten("_to_copy.default", Slot(0), dtype=torch.float32), mask)
            return self.b.emit(
                aten("mul.Tensor", Slot(0), lowest), self.b.emit(aten("rsub.Scalar", Slot(0), 1.0), wide)
            )
        zeros = self.b.emit(aten("zeros.default", [B, 1, S, S], dtype=torch.float32))
        return self.b.emit(
            aten("masked_fill.Scalar", Slot(0), Slot(1), lowest),
            zeros,
            self.b.emit(aten("bitwise_not.default", Slot(0)), mask),
        )


@given(
    kinds=st.lists(st.sampled_from(["causal", "window", "chunk", "padding"]), min_size=1, max_size=4, unique=True),
    size=st.integers(2, 5),
    style=st.sampled_from(["where", "inverted", "masked_fill"]),
)
@settings(max_examples=60, deadline=None)
def test_the_description_masks_what_the_tensor_masks(kinds: list[str], size: int, style: str) -> None:
    draft = _Draft()
    mask = draft.condition(kinds[0], size)
    for kind in kinds[1:]:
        mask = draft.binary("bitwise_and.Tensor", mask, draft.condition(kind, size))
    bias = draft.additive(mask, style)
    function = draft.b.finish([bias], ["bias"])
    module = Module({"forward": function})
    term = IndexTerms(module, function, frozenset({"padding"})).of(bias)
    assert term is not None
    condition = visible_where(term)
    assert condition is not None
    found = describe(condition)
    assert found == Mask(
        causal="causal" in kinds,
        window=size if "window" in kinds else None,
        chunk=size if "chunk" in kinds else None,
        padding="padding" if "padding" in kinds else None,
    )
    rows = torch.rand(2, 9) < 0.7
    tensor = Interpreter(module).run("forward", [rows])[0].expand(2, 1, 9, 9)[:, 0]
    op = Attention(scale=1.0, causal=found.causal, window=found.window, chunk=found.chunk)
    described = op.visible((9, 9), rows if found.padding else None, None, None)
    assert torch.equal((tensor == 0).expand(2, 9, 9), described.expand(2, 9, 9))


@pytest.mark.parametrize(
    "condition",
    [
        axis(3) <= axis(2) + 1,
        sympy.Or(axis(3) <= axis(2), sympy.Eq(axis(3), 0)),
        sympy.Eq(axis(3) % 2, 0),
        axis(1) <= 3,
        sympy.Not(axis(3) <= axis(2)),
    ],
)
def test_what_is_not_a_known_condition_is_not_described(condition: sympy.Basic) -> None:
    assert describe(condition) is None
