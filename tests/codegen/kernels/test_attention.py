"""Attention against the IR's float64 meaning within a derived bound, where it is exact, and bit by bit over splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.attention import Attention, attention, configure
from planish.codegen.kernels.kv_cache import CacheLayout, cache_append, cache_pack, pack_cache
from planish.codegen.tiles.float import FloatTile
from planish.ir.ops.attention import Attention as Meaning
from planish.testing.float_kernels import TILES, by_tile, compile_kernel

U = 2.0**-24

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {"heads": 6, "kv_heads": 2, "size": 20, "value_size": 20},
    "window and sinks": {
        "heads": 4, "kv_heads": 4, "size": 16, "value_size": 33, "window": 37, "sinks": True, "softcap": 2.0,
        "cache_dtype": "bfloat16",
    },
    "chunk and padding": {
        "heads": 7, "kv_heads": 1, "size": 9, "value_size": 70, "chunk": 50, "slopes": True, "padding": True,
        "cache_dtype": "float16",
    },
    "both ways and bias": {
        "heads": 2, "kv_heads": 1, "size": 31, "value_size": 8, "causal": False, "padding": True,
        "bias": (True, False, True, True), "slopes": True,
    },
    "all": {
        "heads": 4, "kv_heads": 2, "size": 8, "value_size": 16, "window": 90, "chunk": 128, "slopes": True, "sinks": True,
        "padding": True, "softcap": 5.0, "bias": (False, True, False, False),
    },
    "one tensor": {
        "heads": 7, "kv_heads": 1, "size": 37, "value_size": 37, "shared": True, "window": 60, "padding": True,
        "cache_dtype": "bfloat16",
    },
    "one tensor in groups": {"heads": 6, "kv_heads": 2, "size": 16, "value_size": 16, "shared": True},
}  # fmt: skip
by_variant = pytest.mark.parametrize("variant", VARIANTS)
MASKS = ("causal", "window", "chunk", "softcap", "scale")


def config_of(tile: FloatTile, variant: str) -> Attention:
    """A kernel cut so small that a hundred keys pass through several blocks and groups, and thirty rows through tasks."""
    config = configure(tile, **{"scale": 0.3, "cache_dtype": "float32", **VARIANTS[variant]})
    return replace(config, block_vectors=2 * config.key_vectors, task_rows=2 * config.rows)


@cache
def compiled(config: Attention) -> Any:
    return compile_kernel(attention(config), config.tile)


@cache
def compiled_cache(kernel: Any, layout: CacheLayout, tile: FloatTile) -> Any:
    return compile_kernel(kernel(layout), tile)


@dataclass
class Problem:
    """Inputs of one call, k and v already rounded to the cache's dtype; optional operands only where taken."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    start: torch.Tensor
    kv_length: torch.Tensor
    padding: torch.Tensor | None
    slopes: torch.Tensor | None
    sinks: torch.Tensor | None
    bias: torch.Tensor | None

    @staticmethod
    def draw(config: Attention, batch: int, length: int, capacity: int, seed: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        dtype = getattr(torch, config.cache_dtype)
        full = (batch, config.heads, length, capacity)
        kv_length = torch.randint(0, capacity + 1, (batch,), generator=generator)
        q = normal(batch, length, config.heads, config.size)
        k = normal(batch, capacity, config.kv_heads, config.size).to(dtype).float()
        v = k if config.shared else normal(batch, capacity, config.kv_heads, config.value_size).to(dtype).float()
        return Problem(
            q,
            k,
            v,
            torch.randint(-3, capacity, (batch,), generator=generator),
            kv_length,
            torch.rand(batch, capacity, generator=generator) < 0.7 if config.padding else None,
            torch.rand(config.heads, generator=generator) if config.slopes else None,
            normal(config.heads) if config.sinks else None,
            None if config.bias is None else normal(*(n if has else 1 for n, has in zip(full, config.bias))),
        )

    def rows(self, part: slice) -> Problem:
        """The same problem for some of the queries."""
        bias = self.bias
        if bias is not None and bias.shape[2] > 1:
            bias = bias[:, :, part].contiguous()
        start = self.start + (part.start or 0)
        return Problem(**{**vars(self), "q": self.q[:, part].contiguous(), "start": start, "bias": bias})

    def batch_row(self, b: int) -> Problem:
        """One row of the batch alone."""
        batched = {
            name: value[b : b + 1].contiguous() if value is not None and value.shape[0] == self.q.shape[0] else value
            for name, value in vars(self).items()
        }
        return Problem(**{**batched, "slopes": self.slopes, "sinks": self.sinks})


def cached(config: Attention, problem: Problem) -> list[tuple[CacheLayout, torch.Tensor]]:
    """What the kernel reads as caches, with how it reads it: keys and values, or one tensor that is both."""
    both = [(config.keys_layout, problem.k), (config.values_layout, problem.v)]
    return both[1:] if config.shared else both


def apply(config: Attention, problem: Problem) -> torch.Tensor:
    return apply_to_caches(config, problem, *(pack_cache(layout, x) for layout, x in cached(config, problem)))


def apply_to_caches(config: Attention, problem: Problem, *caches: torch.Tensor) -> torch.Tensor:
    y = torch.full((*problem.q.shape[:3], config.value_size), float("nan"))
    optional = (
        problem.padding,
        problem.start if config.start else None,
        problem.kv_length if config.kv_length else None,
        problem.slopes,
        problem.sinks,
        problem.bias,
    )
    compiled(config)(problem.q, *caches, *(o for o in optional if o is not None), y)
    return y


def meaning(config: Attention, problem: Problem, v: torch.Tensor) -> torch.Tensor:
    op = Meaning(**{name: getattr(config, name) for name in MASKS})
    p, double = problem, lambda x: None if x is None else x.double()
    operands = (p.padding, p.start, p.kv_length, double(p.slopes), double(p.sinks), double(p.bias))
    (y,) = op.evaluate(p.q.double(), p.k.double(), v.double(), *operands)
    return y


def bound(config: Attention, problem: Problem) -> torch.Tensor:
    """First-order bound on the error of each output, coarse where that costs nothing.

    A score is a chain of D products, capped, with slope and bias: its error, doubled for numerator and denominator, is a
    relative error of the output. So are the roundings of its distance from the largest, the exponentials (2 U each, once
    more for each block in the corrections), and the chains over the keys.
    """
    q, k, keys = problem.q.double(), problem.k.double(), problem.k.shape[1]
    distance = (torch.arange(keys) - problem.start.view(-1, 1)).abs().amax() + q.shape[1]
    largest = config.scale * (q.abs().amax((0, 1, 2)) @ k.abs().amax((0, 1, 2)))
    size = largest + (0 if problem.slopes is None else distance * problem.slopes.max())
    size = size + (0 if problem.bias is None else problem.bias.abs().max()) + (3 if problem.sinks is None else 6)
    score_error = U * ((config.size + 8) * largest + 4 * size)
    blocks = -(-keys // config.block)
    relative = 2 * (score_error + 4 * U * size + (3 * blocks + 4) * U) + (2 * keys + 2 * blocks + 8) * U
    return 1.01 * relative * meaning(config, problem, problem.v.abs()) + 2.0**-120


@by_tile
@by_variant
@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 70), capacity=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_error_is_within_the_bound(
    tile: FloatTile, variant: str, batch: int, length: int, capacity: int, seed: int
) -> None:
    config = config_of(tile, variant)
    problem = Problem.draw(config, batch, length, capacity, seed)
    y, exact = apply(config, problem), meaning(config, problem, problem.v)
    assert bool(((y.double() - exact).abs() <= bound(config, problem)).all())


@by_tile
@by_variant
@settings(max_examples=12, deadline=None)
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
    lone = slice(length // 2, length // 2 + 1)
    assert torch.equal(apply(config, problem.rows(lone)).view(torch.int32), whole[:, lone])
    for b in range(batch):
        assert torch.equal(apply(config, problem.batch_row(b)).view(torch.int32), whole[b : b + 1])


@by_tile
@pytest.mark.parametrize("variant", ["grouped", "window and sinks", "chunk and padding", "one tensor"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_split_over_calls_equals_the_whole(tile: FloatTile, variant: str, data: st.DataObject) -> None:
    """Two sequences of different lengths generated side by side: tokens appended to a cache and attended to, in steps."""
    config = config_of(tile, variant)
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 150), min_size=2, max_size=2)))
    total = int(lengths.max())
    problem = Problem.draw(config, 2, total, total, data.draw(st.integers(0, 2**31)))
    problem.start, problem.kv_length = torch.zeros(2, dtype=torch.int64), lengths
    whole = apply(config, problem).view(torch.int32)

    caches = [torch.empty(layout.shape(2, total)).fill_(float("nan")) for layout, _ in cached(config, problem)]
    if config.cache_dtype != "float32":
        caches = [cache.to(getattr(torch, config.cache_dtype)) for cache in caches]
    if config.cache_dtype == "bfloat16":
        caches = [cache.view(torch.uint16) for cache in caches]
    done = torch.zeros(2, dtype=torch.int64)
    while bool((done < lengths).any()):
        step = data.draw(st.sampled_from([1, 2, 7, 64, 150]))
        taken = torch.minimum(lengths - done, torch.tensor(step))
        width = int(taken.max())
        token = (done.unsqueeze(1) + torch.arange(width)).clamp(max=total - 1)
        row = torch.arange(2).unsqueeze(1)
        for cache_, (layout, new) in zip(caches, cached(config, problem)):
            compiled_cache(cache_append, layout, tile)(cache_, new[row, token].contiguous(), done, taken)
        now = Problem(
            **{**vars(problem), "q": problem.q[row, token].contiguous(), "start": done, "kv_length": done + taken}
        )
        y = apply_to_caches(config, now, *caches).view(torch.int32)
        for b in range(2):
            count = int(taken[b])
            assert torch.equal(y[b, :count], whole[b, int(done[b]) : int(done[b]) + count])
        done = done + taken


@by_tile
def test_without_cache_start_and_length(tile: FloatTile) -> None:
    full = config_of(tile, "grouped")
    alone = replace(full, start=False, kv_length=False)
    problem = Problem.draw(full, 2, 100, 100, 3)
    problem.start, problem.kv_length = torch.zeros(2, dtype=torch.int64), torch.full((2,), 100)
    caches = []
    for layout, new in cached(alone, problem):
        caches.append(torch.full(layout.shape(2, 100), float("nan")))
        compiled_cache(cache_pack, layout, tile)(new, caches[-1])
    assert torch.equal(apply_to_caches(alone, problem, *caches), apply(full, problem))


@by_tile
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("capacity", [255, 256, 700])
def test_the_kernel_as_it_is_cut_for_the_machine(tile: FloatTile, capacity: int, shared: bool) -> None:
    config = configure(
        tile, heads=8, kv_heads=2, size=64, value_size=64, scale=0.125, cache_dtype="float32", shared=shared
    )
    problem = Problem.draw(config, 1, 120, capacity, 11)
    problem.start, problem.kv_length = torch.tensor([capacity - 120]), torch.tensor([capacity])
    y = apply(config, problem)
    assert bool(((y.double() - meaning(config, problem, problem.v)).abs() <= bound(config, problem)).all())
    for part in (slice(0, 119), slice(119, 120), slice(50, 57)):
        assert torch.equal(apply(config, problem.rows(part)), y[:, part])


@by_tile
def test_one_visible_key_gives_its_value(tile: FloatTile) -> None:
    config = configure(tile, heads=4, kv_heads=2, size=24, value_size=40, scale=1.0, cache_dtype="float32", window=1)
    problem = Problem.draw(config, 2, 90, 130, 5)
    problem.start, problem.kv_length = torch.tensor([0, 40]), torch.full((2,), 130)
    expected = torch.stack([problem.v[0, :90], problem.v[1, 40:130]]).repeat_interleave(2, 2)
    assert torch.equal(apply(config, problem), expected)


@by_tile
def test_equal_scores_give_the_exact_mean(tile: FloatTile) -> None:
    """With q = 0 every visible key weighs the same; sums of small integers and powers of two are exact."""
    config = configure(tile, heads=2, kv_heads=1, size=8, value_size=19, scale=1.0, cache_dtype="float16", causal=False)
    problem = Problem.draw(config, 3, 10, 140, 6)
    problem.q.zero_()
    problem.v = torch.randint(-8, 9, problem.v.shape, generator=torch.Generator().manual_seed(7)).float()
    problem.kv_length = torch.tensor([1, 64, 128])
    means = torch.stack([problem.v[b, :n].mean(0) for b, n in enumerate((1, 64, 128))])
    assert torch.equal(apply(config, problem), means.view(3, 1, 1, 19).expand(3, 10, 2, 19))


@by_tile
@pytest.mark.parametrize("variant", ["chunk and padding", "one tensor"])
def test_what_no_query_sees_may_be_nan(tile: FloatTile, variant: str) -> None:
    config = config_of(tile, variant)
    problem = Problem.draw(config, 2, 60, 150, 8)
    problem.kv_length = torch.tensor([110, 75])
    expected = apply(config, problem)
    assert problem.padding is not None
    hidden = ~problem.padding | (torch.arange(150) >= problem.kv_length.unsqueeze(1))
    problem.k[hidden], problem.v[hidden] = float("nan"), float("nan")
    assert torch.equal(apply(config, problem), expected)


@by_tile
def test_queries_that_see_nothing_give_zeros(tile: FloatTile) -> None:
    for variant in VARIANTS:
        config = config_of(tile, variant)
        problem = Problem.draw(config, 2, 20, 90, 9)
        problem.kv_length = torch.tensor([0, 90])
        y = apply(config, problem)
        assert torch.equal(y[0], torch.zeros_like(y[0])) and bool(y[1].isfinite().all())


@by_tile
def test_large_scores_do_not_overflow(tile: FloatTile) -> None:
    config = config_of(tile, "grouped")
    problem = Problem.draw(config, 1, 30, 200, 10)
    problem.q, problem.start, problem.kv_length = problem.q * 1e15, torch.tensor([100]), torch.tensor([200])
    y = apply(config, problem)
    best = meaning(config, problem, problem.v)
    assert bool(y.isfinite().all()) and torch.equal(y, best.float())


def test_refusals() -> None:
    sizes = {"size": 8, "value_size": 8, "scale": 1.0, "cache_dtype": "float32", "tile": TILES[0]}
    with pytest.raises(ValueError, match="5 query heads cannot share 2 key-value heads evenly"):
        Attention(heads=5, kv_heads=2, **sizes)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        Attention(heads=2, kv_heads=2, window=0, **sizes)
    with pytest.raises(ValueError, match="keys of 8 and values of 9 elements cannot be one tensor"):
        Attention(heads=2, kv_heads=2, shared=True, **{**sizes, "value_size": 9})
    with pytest.raises(ValueError, match="at least one element"):
        Attention(heads=2, kv_heads=2, **{**sizes, "size": 0})
    with pytest.raises(ValueError, match="needs 69 registers"):
        Attention(heads=2, kv_heads=2, rows=16, **sizes)
    rows = TILES[0].lanes + 1
    with pytest.raises(ValueError, match=f"subtile of {rows} rows has more than the {rows - 1} lanes"):
        Attention(heads=2, kv_heads=2, rows=rows, key_vectors=1, value_vectors=1, **sizes)
    with pytest.raises(ValueError, match="must be cut evenly"):
        Attention(heads=2, kv_heads=2, block_vectors=6, **sizes)
    with pytest.raises(ValueError, match="caches of int8 are not supported"):
        attention(Attention(heads=2, kv_heads=2, **{**sizes, "cache_dtype": "int8"}))


def test_keys_and_values_must_have_one_capacity() -> None:
    config = config_of(TILES[0], "grouped")
    problem = Problem.draw(config, 1, 1, 100, 1)
    k, v = pack_cache(config.keys_layout, problem.k[:, :40]), pack_cache(config.values_layout, problem.v)
    with pytest.raises(RuntimeError, match="fewer keys than values"):
        apply_to_caches(config, problem, k, v)


def test_the_bound_is_not_vacuous() -> None:
    config = config_of(TILES[0], "grouped")
    problem = Problem.draw(config, 1, 40, 100, 2)
    problem.start, problem.kv_length = torch.tensor([60]), torch.tensor([100])
    shifted = Problem(**{**vars(problem), "start": problem.start - 1})
    wrong = (apply(config, shifted).double() - meaning(config, problem, problem.v)).abs() > bound(config, problem)
    assert bool(wrong.flatten(2).any(-1).all())
