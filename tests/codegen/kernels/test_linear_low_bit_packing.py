"""Where the codes of a low-bit linear kernel's weight lie: read back byte by byte, as the module documents it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from planish.codegen.kernels.linear_low_bit_packing import PLANES, SCALE_BYTES, LowBitLayout
from planish.ir import GroupedInt


@pytest.mark.parametrize(
    "scale_dtype", [pytest.param(d, marks=() if d == torch.float16 else pytest.mark.full) for d in SCALE_BYTES], ids=str
)
@pytest.mark.parametrize(
    "bits, lanes, depth, vectors",
    [
        (bits, *shape)
        for bits in range(1, 9)
        for shape in [(4, 4, 2), (2, 8, 1), (3, 2, 3), (2, 4, 8)]
        # Those are not cut into planes.
        if (bits, shape[-1]) != (3, 8)
    ],
)
def test_packed_weight_is_laid_out_as_documented(
    bits: int, lanes: int, depth: int, vectors: int, scale_dtype: torch.dtype
) -> None:
    most = {1: 8, 2: 4, 3: 8, 4: 2, 5: 8, 6: 4, 7: 8, 8: 1}[bits]
    shared = 1 if bits > 4 or vectors % most else most
    products = most // math.gcd(most, shared)
    group = 2 * max(2, products) * depth
    layout = LowBitLayout(GroupedInt(bits, group, scale_dtype, True), lanes, depth, vectors)
    assert (layout.shared, layout.products) == (shared, products)
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

    def code(block: int, step: int, bundle: int, number: int, lane: int, byte: int) -> int:
        product, member = divmod(number, shared)
        n = block // groups * columns + (bundle * shared + member) * lanes + lane
        k = block % groups * group + (step * products + product) * depth + byte
        return int(codes[n, k]) if n < rows else 0

    for block in range(2 * groups):
        values = iter(packed[block].tolist())
        for step, bundle in itertools.product(range(steps), range(vectors // shared)):
            shift = 0
            for width in PLANES[bits]:
                fields = 8 // width
                for load, lane, byte in itertools.product(
                    range(products * shared // fields), range(lanes), range(depth)
                ):
                    found = [code(block, step, bundle, load * fields + f, lane, byte) for f in range(fields)]
                    parts = [(each >> shift & (1 << width) - 1) << f * width for f, each in enumerate(found)]
                    assert next(values) == sum(parts)
                shift += width
        rest = torch.tensor(list(values), dtype=torch.uint8)
        first = block // groups * columns
        for got, field in ((rest[:-columns].view(scale_dtype), scales), (rest[-columns:], zeros)):
            mine = field[first:, block % groups][:columns]
            assert torch.equal(got, torch.nn.functional.pad(mine, (0, columns - len(mine))))


@pytest.mark.parametrize("lanes, depth, bundles", [(4, 4, 1), (3, 2, 2)])
@pytest.mark.parametrize("zero_points", [False, True])
def test_codes_of_three_bits_lie_uncut_where_eight_vectors_share_a_byte(
    lanes: int, depth: int, bundles: int, zero_points: bool
) -> None:
    steps, groups = 2, 2
    group = steps * depth
    encoding = GroupedInt(3, group, torch.float16, zero_points)
    layout = LowBitLayout(encoding, lanes, depth, 8 * bundles)
    rows, generator = layout.columns + 1, torch.Generator().manual_seed(12)
    codes = torch.randint(0, 8, (rows, group * groups), generator=generator, dtype=torch.uint8)
    storage = {"values": encoding.packing.pack(codes), "scales": torch.randn(rows, groups, generator=generator).half()}
    if zero_points:
        storage["zeros"] = encoding.packing.pack(torch.randint(0, 8, (rows, groups), dtype=torch.uint8))
    packed = layout.pack(storage, rows, group * groups)
    # Panel, group, step, bundle, load, lane, byte.
    values = packed[:, : layout.value_bytes].reshape(2, groups, steps, bundles, 3, lanes, depth).long()
    first, second, third = values.unbind(4)
    found = [bits & 7 for load in (first, second, third) for bits in (load, load >> 3)]
    found += [(first >> 6) << 1 | third >> 7, (third >> 6 & 1) << 2 | second >> 6]
    # To panel, bundle, vector, lane; group, step, byte.
    rebuilt = torch.stack(found, -3).permute(0, 3, 4, 5, 1, 2, 6).reshape(2 * layout.columns, group * groups)
    assert torch.equal(rebuilt[:rows], codes.long())
    assert not rebuilt[rows:].any()


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_highest_bit_of_bytes_is_flipped_for_signed_weights(bits: int) -> None:
    encoding = GroupedInt(bits, 64, torch.float32)
    codes = torch.randint(0, 1 << bits, (16, 128), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    storage = {"values": encoding.packing.pack(codes), "scales": torch.ones(16, 2)}
    layouts = [LowBitLayout(encoding, 2, 4, 8, flipped) for flipped in (False, True)]
    plain, signed = (layout.pack(storage, 16, 128)[:, : layout.value_bytes] for layout in layouts)
    assert torch.equal(signed.view(torch.int8).long(), plain.long() - 128)
