"""One call of every kernel there is, at sizes that no tile divides, with legal operands: what every target is held to.

One module holds a function for each call, so that a target is compiled for, sent to and loaded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from planish.ir import (
    Builder,
    Dense,
    Encoding,
    Float8,
    Function,
    Grouped,
    GroupedInt,
    InMemory,
    Levels,
    Module,
    MxFp4,
    NvFp4,
    Op,
    Param,
    ParamRef,
    TensorType,
    dense_param,
)
from planish.ir.encodings.levels import KINDS
from planish.ir.ops import (
    OPS,
    Attention,
    Conv2d,
    Embedding,
    GatedActivation,
    Hadamard,
    LayerNorm,
    Linear,
    QuantizeActivation,
    QuantizedLinear,
    RmsNorm,
    Rope,
    Slot,
    aten,
)
from planish.ir.ops.aten_samples import ATEN_SAMPLES
from planish.testing.rules import SeededChooser
from planish.testing.tensors import operand_tensors

F32, I64 = torch.float32, torch.int64


@dataclass(frozen=True)
class Case:
    """One call: operands are types of inputs, or parameters."""

    op: Op
    operands: tuple[TensorType | Param | None, ...]
    behind: Op | None = None
    """What makes the first operand of what is given, of the same type."""

    @property
    def types(self) -> tuple[TensorType | None, ...]:
        return tuple(o.type if isinstance(o, Param) else o for o in self.operands)

    def function(self, name: str) -> Function:
        builder = Builder(name)
        inputs = [
            o if o is None else ParamRef(o.name, o.type) if isinstance(o, Param) else builder.input(f"x{n}", o)
            for n, o in enumerate(self.operands)
        ]
        if self.behind is not None:
            inputs[0] = builder.emit(self.behind, inputs[0])
        node = builder.node(self.op, *inputs)
        return builder.finish(node.outputs, [f"y{n}" for n in range(len(node.outputs))])

    def inputs(self, seed: int) -> list[torch.Tensor]:
        """Legal operands: fractions without ties where they float, every code that there is where they are codes."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for drawn, operand in zip(operand_tensors(self.op, self.types, generator), self.operands):
            if drawn is None or not isinstance(operand, TensorType):
                continue
            if drawn.dtype == torch.int8:
                drawn = torch.randint(-127, 128, drawn.shape, generator=generator).to(torch.int8)
            elif drawn.dtype.is_floating_point:
                drawn = drawn * 0.37 + 0.01 * torch.randn(drawn.shape, generator=generator).to(drawn.dtype)
            found.append(drawn)
        return found


def tensor(*shape: int, dtype: torch.dtype = F32) -> TensorType:
    return TensorType(dtype, shape)


def weight(name: str, *shape: int, stored: torch.dtype = F32) -> Param:
    """Fractions that `stored` holds."""
    generator = torch.Generator().manual_seed(len(name) + sum(shape))
    values = torch.randn(shape, generator=generator).to(stored)
    return Param(name, tensor(*shape), Dense(stored), InMemory({"values": values}))


def encoded(name: str, rows: int, columns: int, encoding: Encoding, unit: bool = False) -> Param:
    """A weight in few bits; with `unit` all scales are 1, so that results are the integer sums themselves."""
    storage = dict(encoding.encode(torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))))
    if unit:
        storage["scales"] = torch.ones_like(storage["scales"])
    return Param(name, tensor(rows, columns), encoding, InMemory(storage))


def low_bit_linear(rows: int, columns: int, features: int, encoding: Grouped, unit: bool) -> Case:
    """A linear layer on int8 activations; with real scales it has a bias."""
    name = f"{encoding}.{columns}.{features}"
    return Case(
        QuantizedLinear(),
        (
            tensor(rows, features, dtype=torch.int8),
            tensor(rows, 1),
            encoded(f"{name}.{unit}", columns, features, encoding, unit),
            None if unit else weight(f"{name}.bias", columns),
        ),
    )


def attention(name: str, *, kv_heads: int, size: int, value_size: int, **mask: object) -> dict[str, Case]:
    q, k = tensor(2, 21, 6, size), tensor(2, 21, kv_heads, size)
    v = tensor(2, 21, kv_heads, value_size)
    return {name: Case(Attention(scale=0.3, **mask), (q, k, v, *[None] * 6))}  # type: ignore[arg-type]


# Sizes that no tile divides, and one that all do.
CASES: dict[str, Case] = {
    **{
        f"linear_{rows}_{stored}".replace("torch.", ""): Case(
            Linear(), (tensor(rows, 37), weight(f"w{rows}{stored}", 29, 37, stored=stored), weight(f"b{rows}{stored}", 29))
        )
        for rows in (1, 3, 14)
        for stored in (F32, torch.bfloat16)
    },
    "linear_whole": Case(Linear(), (tensor(8, 64), weight("whole", 64, 64), None)),
    "matmul": Case(aten("matmul.default", Slot(0), Slot(1)), (tensor(2, 3, 7, 19), tensor(2, 3, 19, 11))),
    "convolution": Case(
        Conv2d(stride=(2, 1), padding=(1, 2)), (tensor(2, 3, 9, 13), weight("filters", 5, 3, 3, 3), weight("shift", 5))
    ),
    "depthwise": Case(Conv2d(groups=6, padding=(1, 1)), (tensor(1, 6, 7, 9), weight("each", 6, 1, 3, 3), None)),
    "rms_norm": Case(RmsNorm(1e-5), (tensor(3, 37), weight("gain", 37))),
    "layer_norm": Case(LayerNorm(1e-5), (tensor(3, 37), weight("gain2", 37), weight("shift2", 37))),
    "softmax": Case(aten("softmax.int", Slot(0), -1), (tensor(3, 5, 37),)),
    "rope": Case(Rope(), (tensor(2, 5, 3, 16), tensor(2, 5, dtype=I64), dense_param("frequencies", torch.rand(8)))),
    **{
        f"hadamard_{block}_{width}": Case(Hadamard(block), (tensor(3, width),))
        for block, width in ((2, 6), (12, 12), (32, 96), (56, 168), (100, 100), (160, 160), (1024, 1024), (1216, 2432))
    },
    "embedding": Case(Embedding(), (tensor(2, 9, dtype=I64), weight("table", 23, 37))),
    "gated": Case(GatedActivation("silu"), (tensor(3, 37), tensor(3, 37))),
    "gated_joined": Case(GatedActivation("gelu_tanh"), (tensor(3, 74), None)),
    "cumulative": Case(aten("cumsum.default", Slot(0), 1), (tensor(3, 37),)),
    "largest": Case(aten("topk.default", Slot(0), 3), (tensor(3, 37),)),
    **attention("attention_grouped", kv_heads=2, size=20, value_size=20),
    **attention("attention_windowed", kv_heads=6, size=16, value_size=9, window=5, softcap=3.0),
    **attention("attention_both_ways", kv_heads=1, size=7, value_size=33, causal=False),
}  # fmt: skip

# The integer kernels: what quantises, and what multiplies, with real scales and with scales of one.
INTEGERS: dict[str, Case] = {
    "quantize": Case(QuantizeActivation(), (tensor(5, 96),)),
    # Sums in pairs are the same everywhere, so that no code falls to the other side of a half.
    "transform_and_quantize": Case(QuantizeActivation(), (tensor(5, 192),), behind=Hadamard(64)),
    "quantize_4_bits": Case(QuantizeActivation(4), (tensor(5, 96),)),
    **{
        f"int4_{rows}_{columns}_{group}_{unit}": low_bit_linear(
            rows, columns, features, GroupedInt(4, group, F32 if unit else torch.float16), unit
        )
        for rows, columns, features, group in (
            (1, 37, 192, 32),
            (2, 64, 192, 64),
            (7, 24, 64, 32),
            (9, 19, 192, 96),
            (14, 48, 192, 32),
            (19, 40, 384, 128),
            (70, 136, 256, 64),
            (70, 40, 192, 64),
        )
        for unit in (False, True)
    },
}


# Linear layers on floats with an encoded weight: one row, few and many of them.
DECODED: dict[str, Case] = {
    f"linear_{encoding}_{rows}": Case(
        Linear(),
        (
            tensor(rows, 96),
            encoded(f"{encoding}.decoded", 37, 96, encoding),
            None if encoding == MxFp4() else weight(f"{encoding}.decoded.bias", 37),
        ),
    )
    for encoding, rows in (
        (GroupedInt(4, 32), 1),
        (GroupedInt(4, 32), 9),
        (GroupedInt(3, 96, torch.bfloat16, True), 3),
        (Levels("ternary", 32), 9),
        (NvFp4(), 1),
        (NvFp4(), 9),
        (MxFp4(), 2),
        (Float8(), 1),
        (Float8(), 9),
    )
}

# Every other encoding that linear layers have, with one row and with many.
LOW_BITS: dict[str, Case] = {
    f"{encoding}_{rows}": low_bit_linear(rows, 37, 192, encoding, unit=False)
    for encoding in (
        *(Levels(kind, 64) for kind in KINDS),  # type: ignore[arg-type]
        *(GroupedInt(bits, 32) for bits in (1, 2, 3, 5, 6, 7, 8)),
        *(GroupedInt(bits, 96, torch.bfloat16, True) for bits in (2, 3, 4, 8)),
        GroupedInt(2, 32, torch.int8),
    )
    for rows in (1, 9)
}  # fmt: skip


def module_of(cases: dict[str, Case]) -> Module:
    params = {o.name: o for case in cases.values() for o in case.operands if isinstance(o, Param)}
    return Module({name: case.function(name) for name, case in cases.items()}, params)


def drawn(names: Sequence[str], count: int) -> dict[str, Case]:
    """Calls that the operations' own samplers draw, all operands being inputs."""
    chooser = SeededChooser(7)
    found = {}
    for name in names:
        for number in range(count):
            sample = OPS["aten"].sample_overload(name, chooser) if "." in name else OPS[name].sample(chooser)  # type: ignore[attr-defined]
            found[f"{name.replace('.', '_')}_{number}"] = Case(sample.op, sample.operands)
    return found


@cache
def everything() -> dict[str, Case]:
    without_weights = ["attention", "gated_activation", "hadamard", "last_token", "positions"]
    return {**CASES, **INTEGERS, **DECODED, **drawn(sorted(ATEN_SAMPLES), 1), **drawn(without_weights, 2)}
