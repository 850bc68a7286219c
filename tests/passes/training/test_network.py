"""The network that is trained: the deployed graph over masters, and the deployed weights bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import (
    Builder,
    Dense,
    Encoding,
    Float8,
    GroupedInt,
    InMemory,
    InputError,
    Interpreter,
    IRError,
    Levels,
    Module,
    Param,
    TensorType,
    dense_param,
    verify,
)
from planish.ir.ops import Linear, QuantizeActivation, QuantizedLinear, Slot, aten
from planish.passes.derive.plan import Inputs
from planish.passes.derive.programs import derive
from planish.passes.training import Network
from planish.testing.tiny_decoder import tiny_decoder

BATCH = {
    "input_ids": torch.tensor([[0, 3, 5, 7, 1], [2, 2, 9, 4, 10]]),
    "attention_mask": torch.ones(2, 5, dtype=torch.bool),
}
BATCH["attention_mask"][1, :2] = False


def perceptron(*, dtype: torch.dtype = torch.float32, int8: bool = False, tied: bool = False, seed: int = 0) -> Module:
    """y = tanh(x @ first + bias) @ second: x [4, 6] -> [4, 8] -> [4, 6]; `tied` uses one square weight for both."""
    generator = torch.Generator().manual_seed(seed)
    inner = 6 if tied else 8
    params = [dense_param("first", torch.randn(inner, 6, generator=generator).to(dtype))]
    params += [] if tied else [dense_param("second", torch.randn(6, inner, generator=generator).to(dtype))]
    params.append(dense_param("bias", torch.randn(inner, generator=generator).to(dtype)))
    module = Module({}, {p.name: p for p in params})
    b = Builder("forward")
    x = b.input("x", TensorType(dtype, (4, 6)))

    def linear(x: Any, weight: str, bias: Any) -> Any:
        if not int8:
            return b.emit(Linear(), x, module.param_ref(weight), bias)
        codes, scale = b.node(QuantizeActivation(), x).outputs
        return b.emit(QuantizedLinear(), codes, scale, module.param_ref(weight), bias)

    hidden = b.emit(aten("tanh.default", Slot(0)), linear(x, "first", module.param_ref("bias")))
    return module.with_function(b.finish([linear(hidden, "first" if tied else "second", None)], ["y"]))


def inputs(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


ENCODINGS: list[Encoding] = [
    Levels("sign", 2), Levels("ternary", 3), Levels("ternary2", 6, torch.float32), Levels("stretched", 2, torch.bfloat16),
    GroupedInt(2, 6), GroupedInt(3, 2, torch.bfloat16), GroupedInt(4, 3, torch.float32), GroupedInt(8, 6),
    Dense(torch.float32), Dense(torch.bfloat16), Dense(torch.float16),
]  # fmt: skip


@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 99),
    st.booleans(),
)
def test_what_is_deployed_is_what_was_trained(encoding: Encoding, dtype: torch.dtype, seed: int, int8: bool) -> None:
    """After steps in drawn directions: weights and outputs have the same bits in the network and in the module."""
    network = Network(perceptron(dtype=dtype, int8=int8, seed=seed), {"first": encoding})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    x = inputs(seed).to(dtype)
    seen, deployed = network({"x": x})["y"], network.deployed()
    verify(deployed)
    assert deployed.params["first"].encoding == encoding
    for name in ("first", "second", "bias"):
        assert torch.equal(deployed.params[name].value(), network.weight(name))
        assert deployed.params[name].value().dtype == dtype
    assert torch.equal(Interpreter(deployed).run("forward", [x])[0], seen)


def test_weights_that_are_not_named_keep_their_storage() -> None:
    module = perceptron()
    stored = module.params["second"].value().to(torch.bfloat16)
    module = module.with_params(
        [Param("second", TensorType(torch.float32, (6, 8)), Dense(torch.bfloat16), InMemory({"values": stored}))]
    )
    network = Network(module, {"first": GroupedInt(4, 6)})
    assert torch.equal(network.weight("second"), stored.float())
    with torch.no_grad():
        network.trained()["weight:second"] += 2.0**-20
    deployed = network.deployed().params["second"]
    assert deployed.encoding == Dense(torch.bfloat16) and torch.equal(deployed.value(), stored.float())
    assert torch.equal(network.weight("second"), stored.float())


def test_training_leaves_the_module_as_it_was() -> None:
    module = perceptron()
    before = module.params["first"].value().clone()
    network = Network(module)
    with torch.no_grad():
        network.trained()["weight:first"].zero_()
    assert torch.equal(module.params["first"].value(), before)


def with_leaves(module: Module, leaves: Mapping[str, torch.Tensor]) -> Module:
    """The module over tensors that collect gradients through the interpreter."""
    return module.with_params(
        [Param(n, module.params[n].type, Dense(t.dtype), InMemory({"values": t})) for n, t in leaves.items()]
    )


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_dense_weights_are_those_of_the_interpreter(tied: bool) -> None:
    module = perceptron(tied=tied)
    network = Network(module)
    assert len(network.trained()) == (2 if tied else 3)
    leaves = {n: p.value().clone().requires_grad_() for n, p in module.params.items()}
    Interpreter(with_leaves(module, leaves)).run("forward", [inputs()])[0].square().sum().backward()
    network({"x": inputs()})["y"].square().sum().backward()
    for name, leaf in leaves.items():
        grad = network.trained()[f"weight:{name}"].grad
        assert grad is not None and leaf.grad is not None and torch.equal(grad, leaf.grad)


@pytest.mark.parametrize("op", [QuantizeActivation(), QuantizeActivation(4)], ids=str)
def test_quantised_activations_pass_gradients_straight(op: QuantizeActivation) -> None:
    """For one linear map: x gets what it would get of a float product, the weight what the rounded rows give it."""
    b, weight = Builder("forward"), inputs(2)
    module = Module({}, {"w": dense_param("w", weight)})
    x = b.input("x", TensorType(torch.float32, (4, 6)))
    codes, scale = b.node(op, x).outputs
    module = module.with_function(
        b.finish([b.emit(QuantizedLinear(), codes, scale, module.param_ref("w"), None)], ["y"])
    )
    network, rows = Network(module), inputs(3)
    rows[2] = 0
    leaf = rows.clone().requires_grad_()
    upstream = torch.randn(4, 4, generator=torch.Generator().manual_seed(4))
    network({"x": leaf})["y"].backward(upstream)
    stored, factor = op.evaluate(rows)
    expected_x, expected_w = upstream @ weight, (upstream * factor).T @ stored.float()
    expected_x[2] = 0
    assert leaf.grad is not None and network.trained()["weight:w"].grad is not None
    # A product of 4 terms, and a multiplication by the scale that is undone, against the product alone.
    allowed = 8 * 2.0**-24 * (upstream.abs() @ weight.abs())
    assert bool(((leaf.grad - expected_x).abs() <= allowed).all())
    allowed = 8 * 2.0**-24 * ((upstream * factor).abs().T @ stored.float().abs())
    assert bool(((network.trained()["weight:w"].grad - expected_w).abs() <= allowed).all())


def test_gradients_of_a_decoder_are_finite_with_padding() -> None:
    network = Network(tiny_decoder(), {"0.q": Levels("stretched", 16), "embedding": GroupedInt(4, 16)})
    network(BATCH)["logits"].square().mean().backward()
    for name, parameter in network.trained().items():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).any()), name


def test_a_tied_weight_is_one() -> None:
    network = Network(tiny_decoder(), {"embedding": Levels("ternary", 16)})
    assert sum(name.startswith("weight:embedding") for name in network.trained()) == 1
    assert network.deployed().params["embedding"].encoding == Levels("ternary", 16)


def test_tables_are_not_trained() -> None:
    assert "weight:inv_freq" not in Network(tiny_decoder()).trained()
    b = Builder("forward")
    shape = TensorType(torch.float32, (3,))
    params = {n: dense_param(n, torch.ones(3)) for n in ("gain", "shift", "mean", "variance")}
    params["mask"] = dense_param("mask", torch.tensor([0.0, -torch.inf, 0.0]))
    params["order"] = dense_param("order", torch.tensor([2, 0, 1]))
    module = Module({}, params)
    x = b.input("x", TensorType(torch.float32, (2, 3)))
    refs = [module.param_ref(n) for n in ("gain", "shift", "mean", "variance")]
    assert all(r.type == shape for r in refs)
    call = aten("batch_norm.default", *(Slot(n) for n in range(5)), False, 0.1, 1e-5, False)
    y = b.emit(call, x, *refs)
    y = b.emit(aten("index_select.default", Slot(0), 1, Slot(1)), y, module.param_ref("order"))
    y = b.emit(aten("add.Tensor", Slot(0), Slot(1)), y, module.param_ref("mask"))
    network = Network(module.with_function(b.finish([y], ["y"])))
    assert set(network.trained()) == {"weight:gain", "weight:shift"}
    assert torch.equal(
        network({"x": torch.ones(2, 3)})["y"], Interpreter(network.ir).run("forward", [torch.ones(2, 3)])[0]
    )


def test_frozen_weights_are_not_trained() -> None:
    module = perceptron()
    assert set(Network(module, frozen=("^b", "cond")).trained()) == {"weight:first"}


def quantised_already() -> Module:
    module = perceptron()
    weight, encoding = module.params["first"], GroupedInt(4, 6)
    return module.with_params([Param("first", weight.type, encoding, InMemory(encoding.encode(weight.value())))])


def test_weights_that_are_quantised_already_stay_unless_named() -> None:
    module = quantised_already()
    network = Network(module)
    assert set(network.trained()) == {"weight:second", "weight:bias"}
    assert network.deployed().params["first"] is module.params["first"]
    again = Network(module, {"first": Levels("stretched", 6)})
    assert "alpha:first" in again.trained()


def unlike(name: str) -> Module:
    """A module whose weight holds a NaN."""
    weight = torch.ones(8, 6)
    weight[1, 2] = torch.nan
    return perceptron().with_params([dense_param(name, weight)])


@pytest.mark.parametrize(
    "make, sentence",
    [
        (
            lambda: Network(perceptron(), {"third": GroupedInt(4, 6)}),
            "'third' cannot be trained for .*'forward' reads no such",
        ),
        (lambda: Network(perceptron(), {"first": GroupedInt(4, 6)}, frozen=("fir",)), "'fir' in `frozen` matches it"),
        (lambda: Network(perceptron(), frozen=("(",)), r"'\(' in `frozen` is no regular expression"),
        (lambda: Network(perceptron(), function="other"), "the model has no function 'other' to train; it has forward"),
        (lambda: Network(perceptron(), {"first": Float8("row")}), "parameter 'first' cannot be trained for float8-row"),
        (lambda: Network(tiny_decoder(), {"inv_freq": Dense(torch.float16)}), "it is a constant table there"),
        (lambda: Network(unlike("first"), {"first": GroupedInt(4, 6)}), "parameter 'first' holds NaN or infinity"),
        (lambda: Network(derive(tiny_decoder(), Inputs()), function="decode"), "function 'decode' keeps states"),
    ],
)
def test_what_cannot_be_trained_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(IRError, match="a group of 4 does not divide the last axis"):
        Network(perceptron(), {"first": GroupedInt(4, 4)})


def test_codes_that_something_else_reads_are_refused() -> None:
    b = Builder("forward")
    codes, _ = b.node(QuantizeActivation(), b.input("x", TensorType(torch.float32, (4, 6)))).outputs
    module = Module({}).with_function(b.finish([codes], ["codes"]))
    with pytest.raises(InputError, match="a result reads the codes of quantised activations"):
        Network(module)


def test_batches_are_read_by_name_or_position() -> None:
    network = Network(tiny_decoder())
    by_name = network.inputs_of({**BATCH, "labels": torch.zeros(1)})
    by_position = network.inputs_of([*BATCH.values(), torch.zeros(1)])
    assert list(by_name) == list(by_position) == ["input_ids", "attention_mask"]
    with pytest.raises(InputError, match="a batch has no attention_mask; the model takes input_ids, attention_mask"):
        network.inputs_of({"input_ids": BATCH["input_ids"]})
    with pytest.raises(InputError, match="a batch of 1 tensors is too short"):
        network.inputs_of((BATCH["input_ids"],))
