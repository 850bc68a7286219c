"""Float kernels in blocks of threads, run thread by thread on the processor, in both orders of threads.

One module holds a function for each case. Products of integers small enough are exact in any order, so their bits are
the interpreter's; quantisation has the bits of the host's own kernel; everything else agrees with the interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.runtime.executable import Executable
from planish.ir import (
    Builder,
    Dense,
    Encoding,
    Float8,
    Function,
    GroupedInt,
    InMemory,
    Interpreter,
    Levels,
    Module,
    MxFp4,
    NvFp4,
    Op,
    Param,
    ParamRef,
    TensorType,
    symbol,
)
from planish.ir.ops import Conv2d, Linear, QuantizeActivation, Slot, aten
from planish.targets.cuda.processors import find_processor
from planish.targets.cuda.target import CudaOnHost, CudaTarget
from planish.testing.compiled import call, compiled, faults
from planish.testing.gpus import need_nvcc

pytestmark = pytest.mark.full

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
B, M, K, N = map(symbol, "BMKN")
ORDERS = (False, True)
"""Whether the threads run backwards."""


@dataclass(frozen=True)
class Case:
    """One function, and the sizes of its symbols in each call of it."""

    op: Op
    operands: tuple[TensorType | Param | None, ...]
    calls: tuple[dict[str, int], ...] = ({},)

    def function(self, name: str) -> Function:
        builder = Builder(name)
        inputs = [
            builder.input(f"x{n}", o) if isinstance(o, TensorType) else o and ParamRef(o.name, o.type)
            for n, o in enumerate(self.operands)
        ]
        node = builder.node(self.op, *inputs)
        return builder.finish(node.outputs, [f"y{n}" for n in range(len(node.outputs))])

    def inputs(self, sizes: dict[str, int], fractions: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(sum(sizes.values()))
        types = [o for o in self.operands if isinstance(o, TensorType)]
        found = []
        for type in types:
            whole = torch.randint(-4, 5, type.concrete(sizes), generator=generator)
            if fractions and type.dtype.is_floating_point:
                found.append((whole + torch.rand(whole.shape, generator=generator)).to(type.dtype))
            else:
                found.append(whole.abs().to(type.dtype))
        return found


def tensor(*shape: object, dtype: torch.dtype = F32) -> TensorType:
    return TensorType(dtype, shape)  # type: ignore[arg-type]


def weight(name: str, *shape: int, stored: torch.dtype = F32) -> Param:
    """Small integers."""
    values = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).to(stored)
    return Param(name, tensor(*shape), Dense(stored), InMemory({"values": values}))


def linear(name: str, rows: object, ins: int, outs: int, stored: torch.dtype, *calls: int) -> Case:
    bias = weight(f"{name}.bias", outs) if outs % 2 else None
    operands = (tensor(rows, ins), weight(f"{name}.weight", outs, ins, stored=stored), bias)
    return Case(Linear(), operands, tuple({"M": rows} for rows in calls) or ({},))


def decoded(encoding: Encoding, rows: object, ins: int, outs: int, *calls: int) -> Case:
    """A linear layer on codes whose scales are 1."""
    name = f"{encoding}.{outs}.{ins}"
    storage = dict(encoding.encode(torch.randn(outs, ins, generator=torch.Generator().manual_seed(ins))))
    one = {"nvfp4": 0x38, "mxfp4": 127}.get(encoding.name, 1)
    storage["scales"] = torch.full_like(storage["scales"], one)
    if "tensor_scale" in storage:
        storage["tensor_scale"] = torch.ones(())
    if isinstance(encoding, Float8):
        storage["values"] = torch.randint(-4, 5, (outs, ins)).to(torch.float8_e4m3fn).view(torch.uint8)
    param = Param(f"{name}.weight", tensor(outs, ins), encoding, InMemory(storage))
    bias = weight(f"{name}.bias", outs) if outs % 2 else None
    return Case(Linear(), (tensor(rows, ins), param, bias), tuple({"M": rows} for rows in calls) or ({},))


def product(*a: object, columns: object, calls: tuple[dict[str, int], ...] = ({},)) -> Case:
    return Case(aten("bmm.default", Slot(0), Slot(1)), (tensor(*a), tensor(a[0], a[2], columns)), calls)


def convolution(name: str, x: tuple[object, ...], filters: tuple[int, ...], **attributes: object) -> Case:
    operands = (tensor(*x), weight(f"{name}.filters", *filters), weight(f"{name}.shift", filters[0]))
    calls = ({"B": 1}, {"B": 3}) if x[0] is B else ({},)
    return Case(Conv2d(**attributes), operands, calls)  # type: ignore[arg-type]


def fold(overload: str, shape: tuple[object, ...], *axes: object, dtype: torch.dtype = F32) -> Case:
    calls = ({"M": 3, "N": 5}, {"M": 2, "N": 600}) if N in shape else ({},)
    return Case(aten(overload, Slot(0), *axes), (tensor(*shape, dtype=dtype),), calls)


def softmax(*shape: object, calls: tuple[dict[str, int], ...] = ({},)) -> Case:
    return Case(aten("softmax.int", Slot(0), -1), (tensor(*shape),), calls)


# Sizes that no tile divides, sizes that all do, and sizes that only the call knows.
PRODUCTS: dict[str, Case] = {
    "product": product(2, 3, 5, columns=7),
    "product_edges": product(1, 70, 33, columns=65),
    "product_whole": product(2, 64, 32, columns=64),
    "product_wide": product(30, 300, 18, columns=300),
    "product_symbolic": product(
        B, M, K, columns=N, calls=({"B": 2, "M": 1, "K": 1, "N": 1}, {"B": 1, "M": 67, "K": 40, "N": 66})
    ),
    "linear": linear("linear", 14, 37, 29, F32),
    "linear_one": linear("linear_one", 1, 37, 29, F16),
    "linear_one_whole": linear("linear_one_whole", 1, 2048, 32, BF16),
    "linear_few": linear("linear_few", 3, 300, 19, F32),
    "linear_few_halves": linear("linear_few_halves", 7, 328, 19, F16),
    "linear_symbolic": linear("linear_symbolic", M, 72, 41, BF16, 1, 2, 4, 5, 8, 9, 70, 128 * 264),
    # Codes in words, and one by one.
    "decoded_four_bits": decoded(GroupedInt(4, 32), M, 96, 37, 1, 2, 5, 17),
    "decoded_zero_points": decoded(GroupedInt(2, 16, F16, True), 1, 48, 20),
    "decoded_three_bits": decoded(GroupedInt(3, 20, BF16, True), 9, 60, 7),
    "decoded_trits": decoded(Levels("ternary", 32), 3, 96, 19),
    "decoded_nvfp4": decoded(NvFp4(), M, 80, 37, 1, 2, 5, 17),
    "decoded_mxfp4": decoded(MxFp4(), 9, 96, 16),
    "decoded_eight_bits": decoded(Float8("row"), 2, 48, 37),
    "decoded_eight_bits_odd": decoded(Float8("tensor"), 9, 37, 12),
    "convolution": convolution("convolution", (2, 3, 9, 13), (25, 3, 3, 3), stride=(2, 1), padding=(1, 2)),
    "convolution_groups": convolution(
        "groups", (B, 8, 10, 9), (32, 4, 2, 3), groups=2, padding=(2, 0), dilation=(2, 2)
    ),
    "convolution_large": convolution("large", (B, 4, 66, 66), (9, 4, 3, 3)),
    "convolution_points": convolution("points", (1, 16, 8, 8), (64, 16, 1, 1)),
    "depthwise": convolution("depthwise", (B, 6, 7, 9), (6, 1, 3, 3), groups=6, padding=(1, 1)),
}

OTHERS: dict[str, Case] = {
    "softmax": softmax(3, 5, 37),
    "softmax_whole": softmax(3, 2048),
    "softmax_symbolic": softmax(M, N, calls=({"M": 3, "N": 5}, {"M": 2, "N": 600})),
    "sum": fold("sum.dim_IntList", (5, 300), [-1]),
    "sum_few": fold("sum.dim_IntList", (5, 6), [-1]),
    "sum_all": fold("sum.default", (M, N)),
    "sum_rows": fold("sum.dim_IntList", (M, N), [0]),
    "sum_integers": fold("sum.dim_IntList", (4, 70), [-1], dtype=torch.int64),
    "mean": fold("mean.dim", (5, 6, 17), [0, 2], True),
    "mean_halves": fold("mean.dim", (3, 70), [1], dtype=F16),
    "mean_doubles": fold("mean.dim", (3, 70), [1], dtype=torch.float64),
    "largest": fold("amax.default", (M, N), [1]),
    "any": fold("any.dim", (4, 40), -1, dtype=torch.bool),
}

QUANTISED: dict[str, Case] = {
    f"quantize_{features}_{bits}": Case(QuantizeActivation(bits), (tensor(M, features),))
    for features, bits in ((1, 8), (37, 8), (37, 4), (96, 8), (96, 2), (2048, 8))
}
CASES = {**PRODUCTS, **OTHERS, **QUANTISED}


def module_of(cases: dict[str, Case]) -> Module:
    params = {o.name: o for case in cases.values() for o in case.operands if isinstance(o, Param)}
    return Module({name: case.function(name) for name, case in cases.items()}, params)


@cache
def in_order(backwards: bool) -> Executable:
    return build(module_of(CASES), CudaOnHost(backwards=backwards)).load()


def results(name: str, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Results of the case, the same bits in both orders."""
    one, other = (call(in_order(backwards), name, inputs) for backwards in ORDERS)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(bits(a), bits(b)), f"{name} depends on the order of the threads"
    return one


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32) if tensor.dtype == F32 else tensor


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_integers_are_exact(name: str) -> None:
    module = module_of({name: CASES[name]})
    for sizes in CASES[name].calls:
        inputs = CASES[name].inputs(sizes, fractions=False)
        (want,) = Interpreter(module).run(name, inputs).outputs.values()
        assert torch.equal(results(name, inputs)[0], want), sizes


@pytest.mark.parametrize("name", {**PRODUCTS, **OTHERS})
def test_results_agree_with_the_interpreter(name: str) -> None:
    module = module_of({name: CASES[name]})
    for sizes in CASES[name].calls:
        inputs = CASES[name].inputs(sizes, fractions=True)
        assert not faults(module, name, inputs, results(name, inputs)), sizes


def special_rows(width: int) -> torch.Tensor:
    """Rows of ordinary, huge and tiny numbers, of halves (where rounding is decided by ties), of zeros; rows with an
    infinity of either sign or a NaN, and of -inf alone."""
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(10, width, generator=generator)
    rows[1] *= 1e37
    rows[2] *= 1e-44
    rows[3] = torch.randint(-254, 255, (width,), generator=generator) / 2
    rows[3, 0] = 127
    rows[4] = 0
    rows[5, -1], rows[6, width // 2], rows[7, 0] = float("inf"), float("-inf"), float("nan")
    rows[8] = float("-inf")
    rows[9] = -rows[9].abs()
    return rows


@pytest.mark.parametrize("name", QUANTISED)
def test_quantisation_has_the_bits_of_the_host(name: str) -> None:
    inputs = [special_rows(int(name.split("_")[1]))]
    want = call(compiled(module_of({name: CASES[name]})), name, inputs)
    for mine, theirs in zip(results(name, inputs), want, strict=True):
        assert torch.equal(bits(mine), bits(theirs))


@pytest.mark.parametrize("width", [1, 5, 700])
def test_softmax_of_special_rows(width: int) -> None:
    name, inputs = "softmax_symbolic", [special_rows(width)]
    assert not faults(module_of({name: CASES[name]}), name, inputs, results(name, inputs))


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    """Within each of the linear layer's schedules: the number of rows decides which of them it is."""
    (x,) = CASES["linear_symbolic"].inputs({"M": 70}, fractions=True)
    for counts in ((1, 3, 8), (9, 70)):
        first = [results("linear_symbolic", [x[:count]])[0][0] for count in counts]
        assert all(torch.equal(row, first[0]) for row in first)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_kernels_fit_into_registers(arch: str) -> None:
    need_nvcc()
    target = CudaTarget(find_processor(arch))
    build(module_of(CASES), target)
    assert target.resources
    assert not [r for r in target.resources if r.stack or r.spill_stores or r.spill_loads]
