"""Programs whose caches are held in few bits, compiled: the law of splits bit by bit, their bytes, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import planish
from planish.cli.app import run
from planish.codegen.build import build
from planish.codegen.runtime.language_model import LanguageModel
from planish.codegen.states import Layout, choose_layouts
from planish.ir import Interpreter, Module, UnsupportedError, parse_module, verify
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.passes.quantize_cache import QuantizeCache
from planish.targets.cuda.target import CudaOnHost
from planish.testing.cache_codes import read_cache
from planish.testing.compiled import host
from planish.testing.splits import assert_split_has_the_bits
from planish.testing.tiny_decoder import tiny_decoder

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama"
MIXED = {"keys": "int4", "values": "fp8", "scales": "bfloat16"}


def quantized(module: Module, **options: Any) -> Module:
    return QuantizeCache(**options).apply(module, Context()).module


def derived(**options: Any) -> Module:
    return DerivePrograms().apply(tiny_decoder(**options), Context()).module


def held(model: LanguageModel, module: Module, tensors: dict[str, Any], capacity: int) -> dict[str, torch.Tensor]:
    """The logical states, float64, that lie in a session's caches."""
    found = {}
    for name, layout in choose_layouts(module, host()).items():
        assert isinstance(layout, Layout) and layout.cache is not None
        assert model.manifest["states"][name]["encoding"] == str(module.states[name].encoding)
        found[name] = read_cache(layout.cache, torch.from_numpy(np.from_dlpack(tensors[name])), capacity)
    return found


@pytest.mark.full
def test_a_small_decoder_in_two_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and values of different formats, heads of 12 elements, a window."""
    module = quantized(derived(layers=1, size=12, window=5), **MIXED)
    folder = build(module, host()).save(tmp_path / "artifact")
    model: Any = planish.load(folder)
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 11, (23,), generator=generator).tolist() for _ in range(2)]
    whole = model.session(2).read_all(rows)
    assert_split_has_the_bits(model.session(2), rows, [1, 2, 9, 22], whole)
    session = model.session(2)
    session.read(rows)
    states, capacity = session._caches.tensors, session._caches.capacity
    assert session.nbytes == sum(np.from_dlpack(t).nbytes for t in states.values())
    # The interpreter writes the same codes, but for elements between two of them; scales differ by a rounding.
    inputs = {"input_ids": torch.tensor(rows), "length": torch.tensor([23, 23])}
    exact = Interpreter(module, promote=True).run("prefill", inputs, bindings={"C": 23}).states
    for name, state in held(model, module, states, capacity).items():
        distance, size = (state[:, :23] - exact[name]).abs(), exact[name].abs().amax(-1, keepdim=True)
        assert float((distance <= 2.0**-16 * size).double().mean()) > 0.98
        assert bool((distance <= size / 8 * (1 + 2.0**-16)).all()), "a step of int4; the widest of fp8 is a fourteenth"
    sizes = model.manifest["report"]["functions"]["decode"]["sizes"]
    assert run(["inspect", str(folder)]) == 0
    shown = "".join(capsys.readouterr())
    nbytes = session.nbytes // (2 * capacity) * sizes["C"]
    assert all(text in shown for text in ("int4g12sbf16", "float8-row", str(nbytes))), shown


@pytest.mark.full
def test_the_bundled_model_with_int8_caches() -> None:
    """Every position is decoded by the interpreter too, from the very codes in the compiled program's caches.

    Logits differ by at most four times what float32 does there; but an element of the position's own rows may lie between
    two codes, and which it becomes is then decided by rounding. That moves one element by one step where quantising moved
    every element by up to half of one, so such positions differ by no more than quantising made of them altogether.
    """
    traced = planish.compress(planish.trace(FOLDER, check=False), [DerivePrograms()], check=False)
    small = planish.compress(traced, [QuantizeCache()])
    model: Any = planish.build(small, check=False).load()
    ids = model.tokenizer.encode((FOLDER / "heldout.txt").read_text(encoding="utf-8")[:200])[:48]
    whole = torch.from_numpy(model.logits(ids)).double()
    assert_split_has_the_bits(model.session(1), [ids], [5, 6, 30], [whole.float().numpy()])

    session = model.session(1)
    session.read([ids])
    capacity, count = session._caches.capacity, len(ids)
    assert session.nbytes == sum(math.prod(t.shape) for t in session._caches.tensors.values()) == 1632 * capacity
    states = held(model, small.module, session._caches.tensors, capacity)
    repeated = {n: s.expand(count, *s.shape[1:]) for n, s in states.items()}
    inputs = {"input_ids": torch.tensor(ids).unsqueeze(1), "start": torch.arange(count)}
    exact, plain = (
        Interpreter(small.module, promote=p).run("decode", inputs, states=s)[0][:, 0].double()
        for p, s in ((True, repeated), (False, {n: s.float() for n, s in repeated.items()}))
    )
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, count, dtype=torch.bool)}
    unquantized = Interpreter(small.module, promote=True).run("forward", given)[0][0]
    distance, lost = (whole - exact).abs().amax(1), (exact - unquantized).abs().amax()
    sharp = 4 * (plain - exact).abs().amax(1).median()
    assert float((distance <= sharp).double().mean()) >= 0.5
    assert bool((distance <= lost).all())

    def divergence(logits: torch.Tensor) -> float:
        p = unquantized.log_softmax(-1)
        return float((p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean())

    int4 = quantized(traced.module, keys="int4", values="int4")
    rows = {"start": torch.zeros(1, dtype=torch.int64), "length": torch.tensor([count])}
    logits = Interpreter(int4, promote=True).run(
        "extend", {"input_ids": given["input_ids"], **rows}, bindings={"C": 64}
    )
    figures = divergence(whole), divergence(logits[0][0])
    # Rounding to codes 16 times as far apart makes about 16^2 times the divergence; an uncertain model's nats are a few.
    assert 0 < figures[0] < figures[1] / 16 and figures[1] < 0.25, figures
    assert len(set(model.generate("def ", max_new_tokens=24))) > 6


def refusal(module: Module, target: Any) -> str:
    verify(module)
    with pytest.raises(UnsupportedError) as caught:
        build(module, target)
    return str(caught.value)


def test_what_kernels_do_not_read_is_refused() -> None:
    module = derived(layers=1)
    sentence = refusal(quantized(module, group=2), host())
    assert "the state 'cache.0.k' is held as int8g2sf16, but attention kernels read float32 caches, or int8" in sentence
    assert "with one scale to a head (here 4 elements of torch.float32)" in sentence
    assert "with one scale to a head (here 4 elements" in refusal(quantized(module, group=2), CudaOnHost())


STATE = "state $k: f32[B, C, 1, 8] as grouped_int {bits = 8, group = 8, scale_dtype = f16, zero_points = false}\n"
APPEND = "%new: f32[B, S, 1, 8], %start: i64[B], %length: i64[B]"


def test_what_attention_does_not_read_is_refused() -> None:
    encoding = "{encoding = GroupedInt(bits = 8, group = 8)}"
    stored = f"""{STATE}
func @f({APPEND}) -> (y: f32[B, C, 1, 8]) {{
  %k: f32[B, C, 1, 8] = cache_append($k, %new, %start, %length) {encoding}
  %y: f32[B, C, 1, 8] = aten.neg.default(%k)
  return %y update $k = %k
}}
"""
    assert "reads in attention alone, as heads of a fixed size, but f32[B, C, 1, 8] is read otherwise" in refusal(
        parse_module(stored), host()
    )
    loose = f"""
func @f(%cache: f32[B, C, 1, 8], {APPEND}) -> (y: f32[B, C, 1, 8]) {{
  %y: f32[B, C, 1, 8] = cache_append(%cache, %new, %start, %length) {encoding}
  return %y
}}
"""
    assert "cache_append rounds rows to int8g8sf16, which compiled code does in place alone" in refusal(
        parse_module(loose), host()
    )
