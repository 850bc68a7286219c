"""Finding the loop of products in assembly, which `bench/arm.py` counts; nothing is compiled or timed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ASSEMBLY = """
kernel:
	mov	x8, xzr                         // =0x0
.LBB0_1:
	movi	v0.2d, #0000000000000000
	mov	x9, #-16                        // =0xfffffffffffffff0
.LBB0_2:                                // =>This Inner Loop Header
	.p2align	4
	ldr	q1, [x1, x9]
	sdot	v0.4s, v1.16b, v2.16b
	sdot	v0.4s, v3.16b, v2.16b
	adds	x9, x9, #16
	b.ne	.LBB0_2
	str	q0, [x2], #16
	subs	x8, x8, #1
	b.ne	.LBB0_1
	cbz	x3, .LBB0_4
.LBB0_3:
	sdot	v0.4s, v1.16b, v2.4b[1]
	tbnz	x3, #1, .LBB0_3
.LBB0_4:
	ret
"""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_arm", Path(__file__).resolve().parents[3] / "bench" / "arm.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_innermost_loop_with_that_many_products_and_the_loop_around_it(bench: ModuleType) -> None:
    lines = bench.read_lines(ASSEMBLY)
    loop, around = bench.find_products(lines, "sdot", 2)
    body = bench.instructions(lines[loop.begin : loop.end])
    assert [line.split()[0] for line in body] == ["ldr", "sdot", "sdot", "adds", "b.ne"]
    assert bench.mnemonics(bench.unrolled(lines, loop, around, 4)) == {
        "movi": 1, "mov": 1, "ldr": 4, "sdot": 8, "adds": 4, "b.ne": 5, "str": 1, "subs": 1,
    }  # fmt: skip


def test_a_loop_alone(bench: ModuleType) -> None:
    lines = bench.read_lines(ASSEMBLY)
    loop, around = bench.find_products(lines, "sdot", 1)
    assert around is None
    assert bench.unrolled(lines, loop, around, 1) == ["sdot\tv0.4s, v1.16b, v2.4b[1]", "tbnz\tx3, #1, .LBB0_3"]
    with pytest.raises(LookupError, match="no loop around"):
        bench.unrolled(lines, loop, around, 2)


def test_no_such_loop(bench: ModuleType) -> None:
    with pytest.raises(LookupError, match="no innermost loop with 3 sdot"):
        bench.find_products(bench.read_lines(ASSEMBLY), "sdot", 3)
