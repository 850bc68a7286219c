"""Attention over caches in few bits: codes are the encoding's, results within a derived bound of the IR's meaning, bits
those of the float32 kernel where scales are powers of two, and the same over any split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.attention import Attention, attention, configure
from planish.codegen.kernels.cache_codes import Codes
from planish.codegen.kernels.kv_cache import CacheLayout, cache_append, pack_cache
from planish.codegen.tiles.float import FloatTile
from planish.ir import Encoding, Float8, GroupedInt
from planish.ir.encodings import rounded
from planish.ir.ops.attention import Attention as Meaning
from planish.testing.cache_codes import encoding_of, exact_rows, read_cache
from planish.testing.float_kernels import TILES, compile_kernel

U = 2.0**-24
# A kernel takes a second to compile: the other tiles, and most variants, wait for the longer run.
on_one_tile = pytest.mark.parametrize("tile", TILES[:1], ids=lambda tile: tile.name)

INT8, INT8Z = Codes("int8", "float16"), Codes("int8", "bfloat16", zero_points=True)
INT4, INT4Z, FP8 = Codes("int4", "float16"), Codes("int4", "float32", zero_points=True), Codes("fp8", "float32")
VARIANTS: dict[str, dict[str, Any]] = {
    "int8 in groups": {
        "heads": 6, "kv_heads": 2, "size": 20, "value_size": 20, "key_codes": INT8, "value_codes": INT8,
    },
    "int4, window and sinks": {
        "heads": 4, "kv_heads": 4, "size": 17, "value_size": 33, "window": 37, "sinks": True, "softcap": 2.0,
        "key_codes": INT4Z, "value_codes": INT4,
    },
    "fp8, chunk and padding": {
        "heads": 7, "kv_heads": 1, "size": 9, "value_size": 70, "chunk": 50, "padding": True,
        "key_codes": FP8, "value_codes": FP8,
    },
    "keys alone": {"heads": 2, "kv_heads": 1, "size": 31, "value_size": 8, "key_codes": INT8Z},
    "values alone": {
        "heads": 2, "kv_heads": 1, "size": 8, "value_size": 24, "padding": True, "value_codes": INT4Z,
    },
    "one tensor": {
        "heads": 6, "kv_heads": 2, "size": 37, "value_size": 37, "shared": True, "window": 60, "padding": True,
        "value_codes": INT4Z,
    },
}  # fmt: skip
QUICK = ("int8 in groups",)
by_variant = pytest.mark.parametrize(
    "variant", [v if v in QUICK else pytest.param(v, marks=pytest.mark.full) for v in VARIANTS]
)
MASKS = ("causal", "window", "chunk", "softcap", "scale")


def config_of(tile: FloatTile, variant: str) -> Attention:
    """A kernel cut so small that a hundred keys pass through several blocks and groups, and thirty rows through tasks."""
    config = configure(tile, scale=0.3, cache_dtype="float32", **VARIANTS[variant])
    return replace(config, block_vectors=2 * config.key_vectors, task_rows=2 * config.rows)


@cache
def compiled(config: Attention) -> Any:
    return compile_kernel(attention(config), config.tile)


@cache
def compiled_append(layout: CacheLayout, tile: FloatTile) -> Any:
    return compile_kernel(cache_append(layout), tile)


@dataclass
class Problem:
    """Inputs of one call: k and v before they are rounded, v is k where they are one tensor."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    start: torch.Tensor
    kv_length: torch.Tensor
    padding: torch.Tensor | None
    sinks: torch.Tensor | None

    @staticmethod
    def draw(config: Attention, batch: int, length: int, capacity: int, seed: int, exact: bool = False) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def held(size: int, codes: Codes | None) -> torch.Tensor:
            shape = (batch, capacity, config.kv_heads, size)
            if exact and codes is not None:
                return exact_rows(codes, shape, generator)
            # Rows of very different size.
            return torch.randn(shape, generator=generator) * torch.exp(torch.randn(*shape[:3], 1, generator=generator))

        v = held(config.value_size, config.value_codes)
        return Problem(
            torch.randn(batch, length, config.heads, config.size, generator=generator),
            v if config.shared else held(config.size, config.key_codes),
            v,
            torch.randint(-3, capacity, (batch,), generator=generator),
            torch.randint(0, capacity + 1, (batch,), generator=generator),
            torch.rand(batch, capacity, generator=generator) < 0.7 if config.padding else None,
            torch.randn(config.heads, generator=generator) if config.sinks else None,
        )

    def rows(self, part: slice) -> Problem:
        """The same problem for some of the queries."""
        return replace(self, q=self.q[:, part].contiguous(), start=self.start + (part.start or 0))

    def batch_row(self, b: int) -> Problem:
        """One row of the batch alone."""
        one = {n: v[b : b + 1].contiguous() for n, v in vars(self).items() if v is not None and n != "sinks"}
        return replace(self, **one)


def layouts(config: Attention) -> list[CacheLayout]:
    return [config.values_layout] if config.shared else [config.keys_layout, config.values_layout]


def tensors(config: Attention, problem: Problem) -> list[torch.Tensor]:
    return [problem.v] if config.shared else [problem.k, problem.v]


def empty(layout: CacheLayout, batch: int, capacity: int) -> torch.Tensor:
    """A cache full of rubbish: as scales and as floats of eight bits all ones are NaN."""
    shape = layout.shape(batch, capacity)
    return torch.full(shape, float("nan")) if layout.codes is None else torch.full(shape, 255, dtype=torch.uint8)


def caches(config: Attention, problem: Problem) -> list[torch.Tensor]:
    """The caches once everything was appended in one call."""
    made = []
    for layout, new in zip(layouts(config), tensors(config, problem)):
        batch, tokens = new.shape[:2]
        made.append(empty(layout, batch, tokens))
        start, length = torch.zeros(batch, dtype=torch.int64), torch.full((batch,), tokens)
        compiled_append(layout, config.tile)(made[-1], new, start, length)
    return made


def apply(config: Attention, problem: Problem, held: list[torch.Tensor] | None = None) -> torch.Tensor:
    y = torch.full((*problem.q.shape[:3], config.value_size), float("nan"))
    optional = (problem.padding, problem.start, problem.kv_length, problem.sinks)
    held = caches(config, problem) if held is None else held
    compiled(config)(problem.q, *held, *(o for o in optional if o is not None), y)
    return y


def left_of(codes: Codes | None, tensor: torch.Tensor) -> torch.Tensor:
    """What a cache keeps of a tensor, in float64."""
    return tensor.double() if codes is None else rounded(encoding_of(codes, tensor.shape[-1]), tensor.double())


def meaning(config: Attention, problem: Problem, *, magnitudes: bool = False) -> torch.Tensor:
    op = Meaning(**{name: getattr(config, name) for name in MASKS})
    v = left_of(config.value_codes, problem.v)
    k = v if config.shared else left_of(config.key_codes, problem.k)
    sinks = None if problem.sinks is None else problem.sinks.double()
    operands = (problem.padding, problem.start, problem.kv_length, None, sinks, None)
    (y,) = op.evaluate(problem.q.double(), k, v.abs() if magnitudes else v, *operands)
    return y


def bound(config: Attention, problem: Problem) -> torch.Tensor:
    """First-order bound on the error of each output: that of the float32 kernel, and one rounding more of every score and
    of every weight, each multiplied by a scale. Codes are numbers without an error."""
    keys = left_of(config.value_codes if config.shared else config.key_codes, problem.k)
    # Numbers are counted from a zero: an element is no sum, so its own size is what its error is relative to.
    largest = config.scale * (problem.q.double().abs().amax((0, 1, 2)) @ keys.abs().amax((0, 1, 2)))
    size = largest + (0 if problem.sinks is None else 6)
    score_error = U * ((config.size + 9) * largest + 4 * size)
    count = keys.shape[1]
    blocks = -(-count // config.block)
    relative = 2 * (score_error + 4 * U * size + (3 * blocks + 4) * U) + (2 * count + 2 * blocks + 9) * U
    return 1.01 * relative * meaning(config, problem, magnitudes=True) + 2.0**-120


@on_one_tile
@by_variant
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 70), capacity=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_error_is_within_the_bound(
    tile: FloatTile, variant: str, batch: int, length: int, capacity: int, seed: int
) -> None:
    config = config_of(tile, variant)
    problem = Problem.draw(config, batch, length, capacity, seed)
    y, exact = apply(config, problem), meaning(config, problem)
    assert bool(((y.double() - exact).abs() <= bound(config, problem)).all())


@pytest.mark.parametrize(
    ("variant", "tile"),
    [
        *(pytest.param(v, TILES[0], marks=[] if v in QUICK else [pytest.mark.full]) for v in VARIANTS),
        *(pytest.param(v, tile, marks=[pytest.mark.full]) for tile in TILES[1:] for v in QUICK),
    ],
    ids=lambda of: getattr(of, "name", of),
)
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 2), length=st.integers(1, 40), capacity=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_powers_of_two_give_the_bits_of_the_float_kernel(
    tile: FloatTile, variant: str, batch: int, length: int, capacity: int, seed: int
) -> None:
    """Rows that their codes hold exactly, under scales that are powers of two: where these multiply makes no difference."""
    config = config_of(tile, variant)
    plain = replace(config, key_codes=None, value_codes=None)
    problem = Problem.draw(config, batch, length, capacity, seed, exact=True)
    held = caches(config, problem)
    for layout, cache_, new in zip(layouts(config), held, tensors(config, problem)):
        if layout.codes is not None:
            assert torch.equal(read_cache(layout, cache_, capacity), new.double())
    want = apply(plain, problem, [pack_cache(layout, x) for layout, x in zip(layouts(plain), tensors(plain, problem))])
    assert torch.equal(apply(config, problem, held), want)


@on_one_tile
@by_variant
@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(2, 3), length=st.integers(2, 90), capacity=st.integers(1, 200), cut=st.integers(1, 89),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_bits_do_not_depend_on_the_company(
    tile: FloatTile, variant: str, batch: int, length: int, capacity: int, cut: int, seed: int
) -> None:
    config = config_of(tile, variant)
    problem = Problem.draw(config, batch, length, capacity, seed)
    whole = apply(config, problem).view(torch.int32)
    cut = min(cut, length - 1)
    parts = [apply(config, problem.rows(part)) for part in (slice(0, cut), slice(cut, length))]
    assert torch.equal(torch.cat(parts, 1).view(torch.int32), whole)
    for b in range(batch):
        assert torch.equal(apply(config, problem.batch_row(b)).view(torch.int32), whole[b : b + 1])


@on_one_tile
@pytest.mark.parametrize("variant", [*QUICK, pytest.param("one tensor", marks=pytest.mark.full)])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_split_over_calls_equals_the_whole(tile: FloatTile, variant: str, data: st.DataObject) -> None:
    """Two sequences of different lengths generated side by side: tokens appended to a cache and attended to, in steps."""
    config = config_of(tile, variant)
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 150), min_size=2, max_size=2)))
    total = int(lengths.max())
    problem = Problem.draw(config, 2, total, total, data.draw(st.integers(0, 2**31)))
    problem.start, problem.kv_length = torch.zeros(2, dtype=torch.int64), lengths
    whole = apply(config, problem).view(torch.int32)

    held = [empty(layout, 2, total) for layout in layouts(config)]
    done = torch.zeros(2, dtype=torch.int64)
    while bool((done < lengths).any()):
        step = data.draw(st.sampled_from([1, 2, 7, 64, 150]))
        taken = torch.minimum(lengths - done, torch.tensor(step))
        width = int(taken.max())
        token = (done.unsqueeze(1) + torch.arange(width)).clamp(max=total - 1)
        row = torch.arange(2).unsqueeze(1)
        for cache_, layout, new in zip(held, layouts(config), tensors(config, problem)):
            compiled_append(layout, tile)(cache_, new[row, token].contiguous(), done, taken)
        now = replace(problem, q=problem.q[row, token].contiguous(), start=done, kv_length=done + taken)
        y = apply(config, now, held).view(torch.int32)
        for b in range(2):
            count = int(taken[b])
            assert torch.equal(y[b, :count], whole[b, int(done[b]) : int(done[b]) + count])
        done = done + taken


@on_one_tile
@pytest.mark.full
@pytest.mark.parametrize("codes", [INT8, FP8], ids=lambda codes: codes.format)
@pytest.mark.parametrize("capacity", [255, 700])
def test_the_kernel_as_it_is_cut_for_the_machine(tile: FloatTile, codes: Codes, capacity: int) -> None:
    config = configure(
        tile, heads=8, kv_heads=2, size=64, value_size=64, scale=0.125, cache_dtype="float32", key_codes=codes,
        value_codes=codes,
    )  # fmt: skip
    problem = Problem.draw(config, 1, 120, capacity, 11)
    problem.start, problem.kv_length = torch.tensor([capacity - 120]), torch.tensor([capacity])
    y = apply(config, problem)
    assert bool(((y.double() - meaning(config, problem)).abs() <= bound(config, problem)).all())
    for part in (slice(0, 119), slice(119, 120), slice(50, 57)):
        assert torch.equal(apply(config, problem.rows(part)), y[:, part])


def test_the_bound_is_not_vacuous() -> None:
    """Codes of the token before would be noticed everywhere."""
    config = config_of(TILES[0], "int8 in groups")
    problem = Problem.draw(config, 1, 40, 100, 2)
    problem.start, problem.kv_length = torch.tensor([60]), torch.tensor([100])
    wrong = (apply(config, replace(problem, v=problem.v.roll(1, 1))).double() - meaning(config, problem)).abs()
    assert bool((wrong > bound(config, problem)).flatten(2).any(-1).all())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="codes of int2 are not supported: use one of int8, int4, fp8"):
        Codes("int2", "float16")
    with pytest.raises(ValueError, match="floats of eight bits have no zero points"):
        Codes("fp8", "float32", zero_points=True)
    with pytest.raises(ValueError, match="codes stand for float32, not for float16"):
        CacheLayout("keys", 1, 4, "float16", 16, INT8)
    with pytest.raises(ValueError, match="has the codes of values"):
        configure(
            TILES[0], heads=1, kv_heads=1, size=8, value_size=8, scale=1.0, cache_dtype="float32", shared=True,
            key_codes=INT8,
        )  # fmt: skip


BY_CODES: dict[str, tuple[Codes, type[Encoding]]] = {
    **{f"{c.format}, {c.scale_dtype}{', zeros' * c.zero_points}": (c, GroupedInt) for c in (INT8, INT8Z, INT4, INT4Z)},
    "fp8": (FP8, Float8),
}


@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("named", BY_CODES)
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40), spare=st.integers(0, 30), seed=st.integers(0, 2**31),
    special=st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-42, 3e38, 0.5]),
)  # fmt: skip
def test_append_writes_the_codes_of_the_encoding_and_nothing_else(
    kind: str, named: str, tokens: int, spare: int, seed: int, special: float
) -> None:
    codes, made = BY_CODES[named]
    layout, capacity = CacheLayout(kind, 3, 21, "float32", TILES[0].lanes, codes), tokens + spare
    generator = torch.Generator().manual_seed(seed)
    new = torch.randn(2, tokens, 3, 21, generator=generator)
    new[:, : tokens // 2] = (4 * new[:, : tokens // 2]).round() / 4  # quotients halfway between two codes
    new[0, 0, 0, 5], new[1, 0] = special, special
    length = torch.randint(0, tokens + 1, (2,), generator=generator)
    start = (torch.rand(2, generator=generator) * (capacity - length + 1)).long()
    kept = torch.randint(0, 256, layout.shape(2, capacity), generator=generator).to(torch.uint8)
    want = read_cache(layout, kept, capacity)
    encoding = encoding_of(codes, 21)
    assert isinstance(encoding, made)
    for b in range(2):
        want[b, start[b] : start[b] + length[b]] = rounded(encoding, new[b, : length[b]].double())
    compiled_append(layout, TILES[0])(kept, new, start, length)
    got = read_cache(layout, kept, capacity)
    assert torch.equal(got.nan_to_num(), want.nan_to_num()) and torch.equal(got.isnan(), want.isnan())
