"""Caches in few bits in blocks of threads, run thread by thread on the processor: appends write the codes of the encoding and
of the processor's kernel, attention reads them as the interpreter does, in both orders of threads; and what ptxas says."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.kernels import kv_cache
from planish.codegen.kernels.attention import Attention, configure
from planish.codegen.kernels.blocks import attention as blocks
from planish.codegen.kernels.blocks import cache_append
from planish.codegen.kernels.cache_codes import Codes
from planish.codegen.kernels.kv_cache import CacheLayout, pack_cache
from planish.codegen.target import BlockLimits
from planish.ir import Interpreter, Module
from planish.ir.encodings import rounded
from planish.ir.ops import Attention as Meaning
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.passes.quantize_cache import QuantizeCache
from planish.targets.cuda.processors import find_processor
from planish.targets.cuda.target import CudaOnHost, CudaTarget
from planish.testing.agreement import float_fault
from planish.testing.cache_codes import encoding_of, read_cache, read_parts
from planish.testing.float_kernels import TILES, compile_kernel
from planish.testing.gpus import need_nvcc
from planish.testing.serial_kernels import serial
from planish.testing.tiny_decoder import tiny_decoder

pytestmark = pytest.mark.full

INT8, INT8Z = Codes("int8", "float16"), Codes("int8", "bfloat16", zero_points=True)
INT4, INT4Z, FP8 = Codes("int4", "float16"), Codes("int4", "float32", zero_points=True), Codes("fp8", "float32")
FORMATS = {"int8": INT8, "int8 with zeros": INT8Z, "int4": INT4, "int4 with zeros": INT4Z, "fp8": FP8}
CALLS = {"few": (2, 2, 80), "tiles": (2, 40, 80), "tiles in parts": (1, 37, 144), "one of each": (1, 1, 16)}
"""Batch, length, and capacity, which is a multiple of the rows of a panel."""
# Pieces of one, two and four words; sizes that no word, quad or piece divides.
VARIANTS: dict[str, dict[str, Any]] = {
    "int8, int4 with zeros": {
        "heads": 4, "kv_heads": 2, "size": 64, "value_size": 33, "key_codes": INT8, "value_codes": INT4Z,
    },
    "fp8, int8 with zeros": {
        "heads": 1, "kv_heads": 1, "size": 9, "value_size": 70, "window": 37, "sinks": True, "softcap": 2.0, "padding": True,
        "key_codes": FP8, "value_codes": INT8Z,
    },
    "int8": {"heads": 4, "kv_heads": 2, "size": 21, "value_size": 64, "key_codes": INT8, "value_codes": INT8},
    "int8 with zeros": {
        "heads": 2, "kv_heads": 1, "size": 128, "value_size": 13, "padding": True, "key_codes": INT8Z,
        "value_codes": INT8Z,
    },
    "int4": {
        "heads": 3, "kv_heads": 1, "size": 44, "value_size": 33, "window": 37, "sinks": True, "softcap": 2.0,
        "key_codes": INT4, "value_codes": INT4,
    },
    "int4 with zeros": {
        "heads": 1, "kv_heads": 1, "size": 128, "value_size": 128, "key_codes": INT4Z, "value_codes": INT4Z,
    },
    "fp8": {
        "heads": 3, "kv_heads": 1, "size": 9, "value_size": 70, "chunk": 50, "padding": True, "key_codes": FP8,
        "value_codes": FP8,
    },
    "keys alone": {"heads": 2, "kv_heads": 1, "size": 31, "value_size": 8, "key_codes": INT8Z},
    "values alone": {"heads": 2, "kv_heads": 1, "size": 8, "value_size": 24, "padding": True, "value_codes": INT4Z},
    "one tensor": {
        "heads": 4, "kv_heads": 1, "size": 37, "value_size": 37, "shared": True, "padding": True, "value_codes": INT4Z,
    },
}  # fmt: skip
COMPILED: dict[str, dict[str, Any]] = {
    "int8 and int4": {"keys": "int8", "values": "int4", "size": 128},
    "int4 and int8 with zeros": {"keys": "int4", "values": "int8", "size": 64, "zero_points": True},
    "fp8": {"keys": "fp8", "values": "fp8", "size": 64},
}
BY_DAY = [*list(VARIANTS)[:2], "int4 and int8 with zeros"]


def by_day(given: Any, name: str) -> Any:
    """The rest waits for the night: a kernel takes seconds to compile."""
    return given if name in BY_DAY else pytest.param(given, marks=pytest.mark.nightly)


@cache
def appending(layout: CacheLayout, backwards: bool = False) -> Any:
    return serial(lambda: cache_append.cache_append(layout), backwards)


@cache
def attending(variant: str, backwards: bool) -> tuple[Attention, Any]:
    config = configure(CudaOnHost().float_tile, scale=0.3, cache_dtype="float32", **VARIANTS[variant])
    # On so small a machine a part has several tiles of keys.
    return config, serial(lambda: blocks.attention(config, BlockLimits(99 << 10, 3)), backwards)


def filled(layout: CacheLayout, new: torch.Tensor, capacity: int, length: torch.Tensor) -> torch.Tensor:
    """A cache full of rubbish into which the first `length` rows of `new` were written; as scales all ones are NaN."""
    if layout.codes is None:
        return pack_cache(layout, new)
    made = torch.full(layout.shape(len(new), capacity), 255, dtype=torch.uint8)
    appending(layout)(made, new, torch.zeros(len(new), dtype=torch.int64), length)
    return made


@pytest.mark.parametrize("sizes", CALLS)
@pytest.mark.parametrize("variant", [by_day(v, v) for v in VARIANTS])
def test_attention_agrees_with_the_interpreter_in_any_order_of_threads(variant: str, sizes: str) -> None:
    (batch, length, capacity), (config, _) = CALLS[sizes], attending(variant, False)
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(batch, length, config.heads, config.size, generator=generator)
    # The last keys have not been written, a row of a batch may have none, and another one sees less than it has.
    kv_length = torch.tensor([capacity - capacity // 9 - 1, 0][:batch])
    start = torch.tensor([int(kv_length[0]) - length, 3][:batch])
    padding = torch.rand(batch, capacity, generator=generator) < 0.7 if config.padding else None
    sinks = torch.randn(config.heads, generator=generator) if config.sinks else None
    layouts = [config.values_layout] if config.shared else [config.keys_layout, config.values_layout]
    held, logical = [], []
    for layout in layouts:
        shape = (batch, capacity, config.kv_heads, layout.size)
        new = torch.randn(shape, generator=generator) * torch.exp(torch.randn(*shape[:3], 1, generator=generator))
        kept = new.double() if layout.codes is None else rounded(encoding_of(layout.codes, layout.size), new.double())
        held.append(filled(layout, new, capacity, kv_length))
        logical.append(kept)
    masks = {name: getattr(config, name) for name in ("causal", "window", "chunk", "softcap", "scale")}
    exact, plain = (
        Meaning(**masks).evaluate(
            q.to(d), logical[0].to(d), logical[-1].to(d), padding, start, kv_length, None,
            None if sinks is None else sinks.to(d), None,
        )[0]
        for d in (torch.float64, torch.float32)
    )  # fmt: skip
    optional = [o for o in (padding, start, kv_length, sinks) if o is not None]
    results = []
    for backwards in (False, True):
        y = torch.full((batch, length, config.heads, config.value_size), float("nan"))
        attending(variant, backwards)[1](q, *held, *optional, y)
        results.append(y)
    assert not float_fault(results[0], plain, exact)
    assert torch.equal(*(y.view(torch.int32) for y in results))


@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("named", FORMATS)
def test_append_writes_the_codes_of_the_processor_and_nothing_else(named: str, kind: str) -> None:
    codes, tokens, capacity = FORMATS[named], 21, 48
    size = 21 if kind == "keys" else 150
    layout, other = (CacheLayout(kind, 3, size, "float32", lanes, codes) for lanes in (1, TILES[0].lanes))
    generator = torch.Generator().manual_seed(size)
    new = torch.randn(2, tokens, 3, size, generator=generator)
    new[:, :10] = (4 * new[:, :10]).round() / 4  # quotients halfway between two codes
    for n, special in enumerate([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-42, 3e38]):
        new[0, n, 0, 5], new[1, n] = special, special
    start, length = torch.tensor([9, 30]), torch.tensor([tokens, 17])
    encoding, results = encoding_of(codes, size), []
    before = torch.randint(0, 256, layout.shape(2, capacity), generator=generator).to(torch.uint8)
    for backwards in (False, True):
        results.append(before.clone())
        appending(layout, backwards)(results[-1], new, start, length)
    assert torch.equal(*results)
    want = read_cache(layout, before, capacity)
    for b in range(2):
        want[b, start[b] : start[b] + length[b]] = rounded(encoding, new[b, : length[b]].double())
    got = read_cache(layout, results[0], capacity)
    assert torch.equal(got.nan_to_num(), want.nan_to_num()) and torch.equal(got.isnan(), want.isnan())
    processor = torch.zeros(other.shape(2, capacity), dtype=torch.uint8)
    compile_kernel(kv_cache.cache_append(other), TILES[0])(processor, new, start, length)
    for ours, theirs in zip(read_parts(layout, results[0]), read_parts(other, processor)):
        for b in range(2):
            a, c = (p[b, :, start[b] : start[b] + length[b]].contiguous() for p in (ours, theirs))
            assert torch.equal(a.view(torch.uint8), c.view(torch.uint8))


def test_tokens_outside_the_cache_are_an_error() -> None:
    layout = CacheLayout("keys", 1, 8, "float32", 1, INT8)
    kept = torch.zeros(layout.shape(1, 16), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="tokens outside the cache"):
        appending(layout)(kept, torch.ones(1, 2, 1, 8), torch.tensor([15]), torch.tensor([2]))
    assert not kept.any()


def test_a_part_of_a_panel_is_an_error() -> None:
    """What lies behind it would be read as scales."""
    config, attention = attending(BY_DAY[0], False)
    keys, values = (
        torch.zeros(of.shape(1, 20), dtype=torch.uint8) for of in (config.keys_layout, config.values_layout)
    )
    start, length = torch.tensor([0]), torch.tensor([1])
    with pytest.raises(RuntimeError, match="caches of codes have a multiple of 16 places"):
        appending(config.keys_layout)(keys, torch.ones(1, 1, config.kv_heads, config.size), start, length)
    assert not keys.any()
    q, y = (torch.ones(1, 1, config.heads, size) for size in (config.size, config.value_size))
    with pytest.raises(RuntimeError, match="caches of codes have a multiple of 16 places"):
        attention(q, keys, values, start, length, y)


def test_a_row_takes_no_more_bytes_than_on_a_processor() -> None:
    """Heads of whole words: nothing is spent on alignment."""
    for codes in FORMATS.values():
        layout, other = (CacheLayout("keys", 2, 64, "float32", lanes, codes) for lanes in (1, 16))
        assert layout.shape(1, 64)[2:] == (64, other.row_bytes) and layout.row_bytes == other.row_bytes


def quantized(**options: Any) -> Module:
    sizes = {n: options.pop(n) for n in ("heads", "kv_heads", "size", "window", "layers") if n in options}
    derived = DerivePrograms().apply(tiny_decoder(**sizes), Context()).module
    return QuantizeCache(**options).apply(derived, Context()).module


def test_a_small_decoder_in_two_formats() -> None:
    """Its caches grow while tokens are read in pieces."""
    module = quantized(layers=1, size=12, window=5, keys="int4", values="fp8", scales="bfloat16")
    model: Any = build(module, CudaOnHost()).load()
    ids = torch.randint(0, 11, (1, 70), generator=torch.Generator().manual_seed(3))
    (whole,) = model.session(1).read_all(ids.tolist())
    inputs = {"input_ids": ids, "start": torch.tensor([0]), "length": torch.tensor([70])}
    plain, exact = (Interpreter(module, promote=p).run("extend", inputs, bindings={"C": 80})[0] for p in (False, True))
    assert not float_fault(torch.from_numpy(whole), plain[0], exact[0])
    session = model.session(1)
    first = session.read_all([ids[0, :60].tolist()])[0]
    rest = session.read_all([ids[0, 60:].tolist()])[0]
    both = torch.cat([torch.from_numpy(first), torch.from_numpy(rest)])
    assert not float_fault(both, plain[0], exact[0])


@pytest.mark.parametrize("processor", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", [by_day(n, n) for n in COMPILED])
def test_kernels_fit_into_registers(processor: str, name: str) -> None:
    need_nvcc()
    target = CudaTarget(find_processor(processor))
    build(quantized(layers=1, heads=8, kv_heads=2, **COMPILED[name]), target)
    outside = [r for r in target.resources if r.spilled or r.stack]
    assert sum("attention" in r.kernel for r in target.resources) >= 6
    assert sum("cache_append" in r.kernel for r in target.resources) >= 2
    assert not outside, outside
