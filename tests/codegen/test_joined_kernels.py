"""Several operations in one kernel: when they are joined, and that the results are theirs."""

from __future__ import annotations

import pytest
import torch

from planish.codegen.build import build
from planish.ir import Builder, Function, Module, TensorType, Value
from planish.ir.op import Op
from planish.ir.ops import Aten, Hadamard, LayerNorm, QuantizeActivation, RmsNorm, Slot
from planish.ir.types import dtype_name
from planish.testing.compiled import call, compiled, faults, host, one_call


def function(name: str, read: str) -> Function:
    """A transform and its quantisation, with other readers of the transformed row or without."""
    b = Builder(name)
    y = b.emit(Hadamard(64), b.input("x", TensorType(torch.float32, (3, 128))))
    outputs: list[Value] = [*b.node(QuantizeActivation(), y).outputs]
    if read == "by another":
        outputs.append(b.emit(RmsNorm(1e-5), y, None))
    elif read == "as a result":
        outputs.append(y)
    elif read == "twice":
        outputs += b.node(QuantizeActivation(4), y).outputs
    return b.finish(outputs, [f"y{n}" for n in range(len(outputs))])


def kernels(module: Module) -> dict[str, list[list[str]]]:
    """For each function, the operations of each of its kernels."""
    report = build(module, host()).manifest["report"]["functions"]
    return {name: [step["operations"] for step in found["steps"]] for name, found in report.items()}


READERS = ("once", "by another", "as a result", "twice")
TOGETHER = ["hadamard", "quantize_activation"]


@pytest.mark.full
def test_only_a_row_that_nothing_else_reads_stays_in_the_kernel() -> None:
    module = Module({read: function(read, read) for read in READERS})
    found = kernels(module)
    assert found["once"] == [TOGETHER]
    for read in READERS[1:]:
        assert ["hadamard"] in found[read] and ["quantize_activation"] in found[read] and TOGETHER not in found[read]
    executable = compiled(module)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    results = {read: call(executable, read, [x]) for read in READERS}
    for read in READERS:
        assert not faults(module, read, [x], results[read])
        assert all(torch.equal(a, b) for a, b in zip(results[read][:2], results["once"], strict=True))


@pytest.mark.full
def test_a_transform_without_a_kernel_is_written_out() -> None:
    """In float64; and in bfloat16 it is one of float32."""
    cases = {
        f"{dtype_name(dtype)}_{block}": (dtype, block)
        for dtype in (torch.float64, torch.bfloat16)
        for block in (1, 8, 12, 40)
    }
    types = {name: TensorType(dtype, (2, 3, 3 * block)) for name, (dtype, block) in cases.items()}
    module = Module({name: one_call(name, Hadamard(block), [types[name]]) for name, (_, block) in cases.items()})
    executable = compiled(module)
    for number, name in enumerate(cases):
        x = torch.randn(types[name].shape, generator=torch.Generator().manual_seed(number)).to(types[name].dtype)
        assert not faults(module, name, [x], call(executable, name, [x]))


NORMS: dict[str, tuple[Op, list[None]]] = {
    "rms_norm": (RmsNorm(1e-5), [None]),
    "layer_norm": (LayerNorm(1e-5), [None] * 2),
}
SUM = Aten("add.Tensor", (Slot(0), Slot(1)))


def residual(norm: str, read: str) -> Function:
    """A sum, its norm and the codes of that, with other readers of the sum or without."""
    b = Builder(f"{norm}_{read.replace(' ', '_')}")
    x, y = (b.input(name, TensorType(torch.float32, (3, 40))) for name in ("x", "y"))
    op, absent = NORMS[norm]
    if read == "of a product":
        y = b.emit(Aten("mul.Tensor", (Slot(0), 3.0)), y)
    total = b.emit(Aten("add.Tensor", SUM.arguments, (("alpha", 2),)) if read == "of a multiple" else SUM, x, y)
    early = [b.emit(op, total, *absent)] if read == "before" else []
    outputs: list[Value] = [*b.node(QuantizeActivation(), b.emit(op, total, *absent)).outputs, *early]
    if read == "as a result":
        outputs.append(total)
    elif read == "by the next sum":
        outputs.append(b.emit(SUM, total, y))
    elif read in ("of a product", "of a multiple"):
        outputs.append(b.emit(Aten("neg.default", (Slot(0),)), total))
    return b.finish(outputs, [f"y{n}" for n in range(len(outputs))])


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
def test_a_sum_is_part_of_the_kernel_that_first_reads_it(norm: str) -> None:
    """If it must lie in memory all the same, and nothing that could be computed in it would have to lie there."""
    quantized, add = [norm, "quantize_activation"], "aten.add.Tensor"
    expected = {
        "once": [[add], quantized],
        "as a result": [[add, *quantized]],
        "by the next sum": [[add, *quantized], [add]],
        "before": [[add, norm], quantized],
        "of a product": [["aten.mul.Tensor", add], quantized, ["aten.neg.default"]],
        "of a multiple": [[add], quantized, ["aten.neg.default"]],
    }
    functions = {read: residual(norm, read) for read in expected}
    module = Module({f.name: f for f in functions.values()})
    found = kernels(module)
    assert {read: found[f.name] for read, f in functions.items()} == expected
    executable = compiled(module)
    x, y = (torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for function in functions.values():
        assert not faults(module, function.name, [x, y], call(executable, function.name, [x, y]))
