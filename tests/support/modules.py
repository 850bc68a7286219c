"""Random modules: well typed by construction, several operations deep, with symbolic dimensions.

A module grows step by step. Each step picks a value that exists and something that can be done with its type, so that
nothing is drawn and thrown away, and leaving out a step leaves a legal module: that is how failures shrink. Sizes are
asymmetric, operations come as twins (the same again, or the same but for one attribute), weights are tied, and some
values are never used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

from planish.ir import (
    Builder,
    Chooser,
    Dense,
    Encoding,
    GroupedInt,
    InMemory,
    Module,
    Op,
    Operand,
    Param,
    ParamRef,
    State,
    StateRef,
    TensorType,
    Value,
    symbol,
)  # fmt: skip
from planish.ir.ops import Embedding, Positions
from planish.testing.chooser import HypothesisChooser
from planish.testing.steps import STEPS, Step, applicable
from planish.testing.tensors import tensor

BATCH, TOKENS, CAPACITY = symbol("B"), symbol("S"), symbol("C")
ENTRIES = 7


@dataclass
class Grower:
    """A module under construction: what the steps draw from and write to."""

    choose: Chooser
    generator: torch.Generator
    dtype: torch.dtype
    params: dict[str, Param] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    functions: Module = field(default_factory=lambda: Module({}))

    def __post_init__(self) -> None:
        self.start("forward")

    def start(self, name: str) -> None:
        """Begin a function. Its inputs are made when a step first needs them."""
        self.builder = Builder(name)
        self.values: list[Value] = []
        self.updates: dict[str, Operand] = {}

    def input(self, name: str, type: TensorType) -> Value:
        """The input of that name, made at its first use."""
        found = next((v for v in self.builder.inputs if v.name == name), None)
        return found if found is not None else self.builder.input(name, type)

    def row(self, name: str) -> Value:
        """An input with one integer for each row of the batch."""
        return self.input(name, TensorType(torch.int64, (BATCH,)))

    def token_ids(self) -> Value:
        return self.input("input_ids", TensorType(torch.int64, (BATCH, TOKENS)))

    def emit(self, op: Op, *operands: Operand | None) -> Value:
        """Append an operation; its results join the values that later steps may use."""
        named = self.choose.choice(["", "", "h", "x.y"])
        source = self.choose.choice(["", "", "model.py:12", "model.py:7 in layers.0"])
        node = self.builder.node(op, *operands, source=source, names=[named])
        self.values.extend(node.outputs)
        return node.outputs[0]

    def param(self, type: TensorType, low: int = -4, high: int = 4, *, encoded: bool = False) -> ParamRef:
        """A parameter of that type: often one that exists (tied weights), else a new one."""
        same = [p.name for p in self.params.values() if p.type == type]
        if same and type.dtype != torch.int64 and self.choose.boolean():
            return ParamRef(self.choose.choice(same), type)
        name = self.choose.choice(["w", "layers.0.weight", "weight of it"]) + f".{len(self.params)}"
        options: list[Encoding] = [Dense(type.dtype)]
        if encoded and type.dtype == torch.float32:
            options += [Dense(torch.bfloat16), GroupedInt(8, 1)]
            last = type.concrete({})[-1]
            options += [GroupedInt(4, group) for group in (2, 4) if last % group == 0]
        encoding = self.choose.choice(options)
        storage = encoding.encode(tensor(type, self.generator, low, high))
        self.params[name] = Param(name, type, encoding, InMemory(storage))
        return ParamRef(name, type)

    def state(self, trailing: TensorType) -> StateRef:
        """A cache of one row of that type for each batch and position."""
        type = TensorType(trailing.dtype, (BATCH, CAPACITY, *trailing.shape))
        name = f"cache.{len(self.states)}"
        self.states[name] = State(name, type)
        return StateRef(name, type)

    def embed(self) -> Value:
        """A first value: embedded tokens, of a size that divides by 2 and by 3 now and then."""
        size = self.choose.choice([4, 6, 3, 1, 8])
        table = self.param(TensorType(self.dtype, (ENTRIES, size)), encoded=True)
        return self.emit(Embedding(), self.token_ids(), table)

    def positions(self, batch: object, length: object) -> Value | None:
        """Positions of that batch and length, where they are the inputs'."""
        if (batch, length) != (BATCH, TOKENS):
            return None
        start = self.row("start") if self.choose.boolean() else None
        return self.emit(Positions(BATCH, TOKENS), start, None)

    def step(self, steps: list[Step]) -> None:
        x = self.values[-1] if self.choose.boolean() else self.choose.choice(self.values)
        self.choose.choice(applicable(steps, x.type))(self, x)

    def finish(self) -> None:
        """Close the function: its last value, perhaps some other, and the updates of states."""
        outputs: list[Operand] = [self.values[-1]]
        for _ in range(self.choose.integer(0, 2)):
            outputs.append(self.choose.choice([*self.values, *self.builder.inputs]))
        names = [f"out{number}" for number in range(len(outputs))]
        self.functions = self.functions.with_function(self.builder.finish(outputs, names, self.updates))

    def module(self) -> Module:
        metadata = {"context": self.choose.integer(0, 99), "scale": self.choose.choice([1.0, -0.0, float("inf")])}
        return Module(self.functions.functions, self.params, self.states, metadata)


@st.composite
def modules(
    draw: st.DrawFn, *, exact: bool = False, size: int = 8, functions: int = 2, dtype: torch.dtype | None = None
) -> Module:
    """Modules that verify.

    Args:
        exact: only operations that map integers to integers; they stay far below 2^53, so that in float64 (`promote`)
            every correct rewrite leaves the same bits.
        size: how many steps at most, in each function; a step appends one to nine operations.
        functions: how many functions at most; they share parameters.
        dtype: the floating dtype of the module; drawn when None.
    """
    choose = HypothesisChooser(draw)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    dtype = dtype or choose.choice([torch.float32, torch.float64, torch.bfloat16])
    steps = [step for step in STEPS if step.exact or not exact]
    grower = Grower(choose, generator, dtype)
    for number in range(choose.integer(1, functions)):
        grower.start("forward" if number == 0 else f"other{number}")
        grower.embed()
        for _ in range(choose.integer(1, size)):
            grower.step(steps)
        grower.finish()
    return grower.module()
