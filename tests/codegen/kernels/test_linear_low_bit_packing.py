"""Where the codes of a low-bit linear kernel's weight lie: read back byte by byte, as the module documents it."""

from __future__ import annotations

import pytest
import torch

from planish.codegen.kernels.linear_low_bit_packing import PLANES, SCALE_BYTES, LowBitLayout
from planish.ir import GroupedInt


@pytest.mark.parametrize(
    "scale_dtype", [pytest.param(d, marks=() if d == torch.float16 else pytest.mark.full) for d in SCALE_BYTES], ids=str
)
@pytest.mark.parametrize("lanes, depth, vectors", [(4, 4, 2), (2, 8, 1), (3, 2, 3)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_weight_is_laid_out_as_documented(
    lanes: int, depth: int, vectors: int, bits: int, scale_dtype: torch.dtype
) -> None:
    products = {1: 8, 2: 4, 3: 8, 4: 2, 5: 8, 6: 4, 7: 8, 8: 1}[bits]
    group = 2 * max(2, products) * depth
    layout = LowBitLayout(GroupedInt(bits, group, scale_dtype, True), lanes, depth, vectors)
    columns, groups, steps = layout.columns, 2, group // (products * depth)
    rows = columns + 1
    generator = torch.Generator().manual_seed(9)
    codes = torch.randint(0, 1 << bits, (rows, group * groups), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (rows, groups), generator=generator, dtype=torch.uint8)
    scales = torch.randn(rows, groups, generator=generator).to(scale_dtype)
    packing = layout.encoding.packing
    storage = {"values": packing.pack(codes), "scales": scales, "zeros": packing.pack(zeros)}
    packed = layout.pack(storage, rows, group * groups)
    assert tuple(packed.shape) == layout.packed_shape(rows, group * groups) == (2 * groups, layout.block_bytes)
    for block in range(2 * groups):
        values = iter(packed[block].tolist())
        for step in range(steps):
            for vector in range(vectors):
                shift = 0
                for width in PLANES[bits]:
                    fields = 8 // width
                    for load in range(products // fields):
                        for lane in range(lanes):
                            for byte in range(depth):
                                n = block // groups * columns + vector * lanes + lane
                                k = block % groups * group + (step * products + load * fields) * depth + byte
                                found = [codes[n, k + f * depth].item() if n < rows else 0 for f in range(fields)]
                                parts = [
                                    (code >> shift & (1 << width) - 1) << f * width for f, code in enumerate(found)
                                ]
                                assert next(values) == sum(parts)
                    shift += width
        rest = torch.tensor(list(values), dtype=torch.uint8)
        first = block // groups * columns
        for got, field in ((rest[:-columns].view(scale_dtype), scales), (rest[-columns:], zeros)):
            mine = field[first:, block % groups][:columns]
            assert torch.equal(got, torch.nn.functional.pad(mine, (0, columns - len(mine))))


@pytest.mark.parametrize("lanes, depth, vectors", [(4, 4, 2), (3, 2, 3)])
@pytest.mark.parametrize("zero_points", [False, True])
def test_codes_of_three_bits_lie_uncut_where_bytes_are_inserted(
    lanes: int, depth: int, vectors: int, zero_points: bool
) -> None:
    group, groups = 2 * 8 * depth, 2
    encoding = GroupedInt(3, group, torch.float16, zero_points)
    cut, uncut = (LowBitLayout(encoding, lanes, depth, vectors, inserting=inserting) for inserting in (False, True))
    rows, generator = uncut.columns + 1, torch.Generator().manual_seed(12)
    codes = torch.randint(0, 8, (rows, group * groups), generator=generator, dtype=torch.uint8)
    storage = {"values": encoding.packing.pack(codes), "scales": torch.randn(rows, groups, generator=generator).half()}
    if zero_points:
        storage["zeros"] = encoding.packing.pack(torch.randint(0, 8, (rows, groups), dtype=torch.uint8))
    packed = uncut.pack(storage, rows, group * groups)
    assert packed.shape == cut.packed_shape(rows, group * groups)
    assert torch.equal(packed[:, uncut.value_bytes :], cut.pack(storage, rows, group * groups)[:, cut.value_bytes :])
    # Panel, group, step, vector, load, lane, byte.
    values = packed[:, : uncut.value_bytes].reshape(2, groups, 2, vectors, 3, lanes, depth).long()
    first, second, third = values.unbind(4)
    found = [bits & 7 for load in (first, second, third) for bits in (load, load >> 3)]
    found += [(first >> 6) << 1 | third >> 7, (third >> 6 & 1) << 2 | second >> 6]
    # To panel, vector, lane; group, step, product, byte.
    rebuilt = torch.stack(found, -2).permute(0, 3, 4, 1, 2, 5, 6).reshape(2 * uncut.columns, group * groups)
    assert torch.equal(rebuilt[:rows], codes.long())
    assert not rebuilt[rows:].any()


def test_codes_of_eight_bits_lie_lower_for_signed_weights() -> None:
    encoding = GroupedInt(8, 8, torch.float32)
    codes = torch.arange(16, dtype=torch.uint8).reshape(1, 16) * 17
    storage = {"values": codes, "scales": torch.ones(1, 2)}
    plain, signed = (LowBitLayout(encoding, 1, 4, 1, signed).pack(storage, 1, 16)[:, :8] for signed in (False, True))
    assert torch.equal(plain.flatten(), codes.flatten())
    assert torch.equal(signed.view(torch.int8).flatten().long(), codes.flatten().long() - 128)
