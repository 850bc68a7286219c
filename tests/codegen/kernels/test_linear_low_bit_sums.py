"""The sums of one row, done in Python on packed bytes: they are those of the levels, and stay within their bounds."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.codegen.kernels.linear_low_bit_packing import LowBitLayout
from planish.codegen.kernels.linear_low_bit_sums import sums_of
from planish.ir import Grouped, GroupedInt, Levels

DEPTH, GROUP = 2, 8
CODES = [
    *(GroupedInt(bits, GROUP, torch.float32) for bits in (1, 2, 3, 4)),
    GroupedInt(4, GROUP, torch.float32, zero_points=True),
    *(Levels(kind, GROUP, torch.float32) for kind in ("sign", "ternary", "stretched")),
]
SHARED = {1: 8, 2: 4, 3: 8, 4: 2}
MACHINES = {"unsigned": (False, True), "signed": (True, True), "by field": (False, False)}


@pytest.mark.full
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("encoding", CODES, ids=str)
@given(bundles=st.integers(1, 2), seed=st.integers(0, 2**31), extreme=st.booleans())
def test_sums_are_those_of_levels(encoding: Grouped, machine: str, bundles: int, seed: int, extreme: bool) -> None:
    flipped, whole_bytes = MACHINES[machine]
    grid, bits = encoding.grid, (encoding.grid.count - 1).bit_length()
    layout = LowBitLayout(encoding, 1, DEPTH, SHARED[bits] * bundles, flipped)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, grid.count, (layout.columns, GROUP), generator=generator, dtype=torch.uint8)
    x = torch.randint(-127, 128, (GROUP,), generator=generator)
    if extreme:
        codes, x = (codes > 0).to(torch.uint8) * (grid.count - 1), torch.full_like(x, 127)
    zeros = torch.zeros(layout.columns, 1, dtype=torch.uint8)
    storage = {"values": encoding.packing.pack(codes), "scales": torch.ones(layout.columns, 1)}
    packed = layout.pack({**storage, "zeros": encoding.packing.pack(zeros)}, layout.columns, GROUP)
    loads = packed[0, : layout.value_bytes].reshape(layout.steps, bundles, layout.loads, DEPTH)

    sums = sums_of(layout, grid, whole_bytes)
    found: list[int] = []
    for each in sums.sums:
        read = loads[:, each.bundle, each.load] >> each.shift & each.mask
        weights = read.view(torch.int8).long() if flipped else read.long()
        found.append(int((weights.flatten() * x).sum() + each.start * x.sum()))
    most = int(x.abs().sum())
    for n, column in enumerate(sums.columns):
        parts = [
            Fraction(factor) * (found[i] - (0 if sums.sums[i].before is None else found[sums.sums[i].before]))
            for i, factor in column.parts
        ]
        total = Fraction(column.factor) * sum(parts) + column.first * int(x.sum())
        assert total == int((grid.levels(codes[n]).long() * x).sum())
        assert abs(sum(parts)) <= sums.largest_column * most
    assert max(map(abs, found)) <= sums.largest * most
