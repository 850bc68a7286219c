"""The manager believes nothing: passes that lie, break or guess are stopped by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from planish.ir import Builder, Function, IRError, Module, Node, TensorType, Value, dense_param, symbol
from planish.ir.ops import Linear, Slot, aten
from planish.ir.params import InMemory, Param
from planish.passes.canonicalise import Canonicalise
from planish.passes.common_subexpressions import CommonSubexpressions
from planish.passes.contract import Contract, Lossy, Refines
from planish.passes.dead_code import DeadCode
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Pass, PassError, PassResult
from planish.testing.tiny_decoder import tiny_decoder

F32 = torch.float32
Change = Callable[[Module], PassResult]


def made(
    change: Change, contract: Contract | None = None, *, adds: bool = False, ensures: tuple[str, ...] = ()
) -> Pass:
    """A pass that does what a function does."""

    class Made(Pass):
        name: ClassVar[str] = "made"
        adds_functions: ClassVar[bool] = adds

        @property
        def contract(self) -> Contract:
            return contract or super().contract

        def apply(self, module: Module, context: Context) -> PassResult:
            return change(module)

        def ensures(self, before: Module, after: Module, context: Context) -> tuple[str, ...]:
            return ensures

    return Made()


def small() -> Module:
    """y = relu(linear(x)) + x."""
    builder = Builder("forward")
    weight = dense_param("w", torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    x = builder.input("x", TensorType(F32, (symbol("B"), 6)))
    module = Module({}, {"w": weight})
    linear = builder.emit(Linear(), x, module.param_ref("w"), None, source="model.py:3")
    relu = builder.emit(aten("relu.default", Slot(0)), linear, source="model.py:4")
    y = builder.emit(aten("add.Tensor", Slot(0), Slot(1)), relu, x, source="model.py:5")
    return module.with_function(builder.finish([y], ["y"]))


def with_forward(module: Module, **changes: Any) -> Module:
    return module.with_function(dataclasses.replace(module.functions["forward"], **changes))


def stop(*passes: Pass, module: Module | None = None, **options: Any) -> PassError:
    """The error with which a run of the manager ends."""
    with pytest.raises(PassError) as caught:
        PassManager(passes, reproduce=False, **options).run(small() if module is None else module)
    return caught.value


def swap_node(module: Module, index: int, node: Node) -> Module:
    nodes = list(module.functions["forward"].nodes)
    nodes[index] = node
    return with_forward(module, nodes=tuple(nodes))


def renamed(module: Module) -> Module:
    """The same but for a node's operation, which computes the same."""
    node = module.functions["forward"].nodes[1]
    return swap_node(module, 1, Node(aten("clamp_min.default", Slot(0), 0.0), node.inputs, node.outputs, node.source))


def test_a_correct_pass_is_recorded(tmp_path: Path) -> None:
    seen: list[str] = []
    progress: list[float] = []
    context = Context(progress=lambda fraction, phrase: progress.append(fraction))
    manager = PassManager(
        [made(lambda m: PassResult(renamed(m), 1)), DeadCode()],
        context=context,
        after_change=lambda n, m: seen.append(n),
    )
    module, report = manager.run(small())
    first, second = report.passes
    assert (first.name, first.matches, first.changed, first.contract) == ("made", 1, True, "exact")
    assert first.outcome is not None and not first.outcome.failures and first.outcome.largest_use <= 1
    assert not second.changed and second.outcome is None
    assert seen == ["made"]
    assert progress == sorted(progress) and progress[-1] == 1.0
    assert "made" in str(report) and report.as_dict()["passes"][0]["check"]["regions"]["checked"] >= 1
    assert len(module.functions["forward"].nodes) == 3


def test_the_input_must_verify() -> None:
    broken = with_forward(small(), outputs=(Value(TensorType(F32, (2,))),))
    with pytest.raises(IRError):
        PassManager([]).run(broken)


def test_says_nothing_changed() -> None:
    error = stop(made(lambda m: PassResult(renamed(m), 0)))
    assert "says it changed nothing" in str(error)


def test_says_something_changed() -> None:
    assert "says it rewrote 3 places, but" in str(stop(made(lambda m: PassResult(m, 3))))
    copied = made(lambda m: PassResult(with_forward(m), 1))
    assert "the module it returns is the same" in str(stop(copied))


def test_writes_into_its_input() -> None:
    def scribble(module: Module) -> PassResult:
        source = module.params["w"].source
        assert isinstance(source, InMemory)
        source.tensors["values"].mul_(2)
        return PassResult(module, 0)

    assert "wrote into the storage of parameter 'w' of its input" in str(stop(made(scribble)))


def test_invalid_result() -> None:
    def reorder(module: Module) -> PassResult:
        return PassResult(with_forward(module, nodes=tuple(reversed(module.functions["forward"].nodes))), 1)

    error = stop(made(reorder))
    assert "leaves a module that is not well formed" in str(error) and "before it is defined" in str(error)


def test_interface() -> None:
    def other_output(module: Module) -> PassResult:
        forward = module.functions["forward"]
        return PassResult(
            with_forward(module, outputs=(forward.nodes[1].output, *forward.outputs), output_names=("a", "y")), 1
        )

    assert "changed the outputs of function 'forward'" in str(stop(made(other_output)))
    gone = made(lambda m: PassResult(Module({}, m.params), 1))
    assert "removed function 'forward'" in str(stop(gone))

    def second(module: Module) -> PassResult:
        f = module.functions["forward"]
        return PassResult(module.with_function(Function("more", f.inputs, f.nodes, f.outputs, f.output_names)), 1)

    assert "added function 'more', which it does not declare" in str(stop(made(second)))


def test_an_exception_names_the_pass() -> None:
    def crash(module: Module) -> PassResult:
        raise KeyError("lost")

    assert "pass 'made' raised KeyError" in str(stop(made(crash)))


def test_a_wrong_result_is_named_with_its_operation() -> None:
    def wrong(module: Module) -> PassResult:
        node = module.functions["forward"].nodes[1]
        return PassResult(swap_node(module, 1, Node(aten("abs.default", Slot(0)), node.inputs, node.outputs)), 1)

    error = stop(made(wrong))
    assert "pass 'made' breaks its contract (exact)" in str(error)
    assert error.diverging in ("aten.relu.default (model.py:4)", "aten.add.Tensor (model.py:5)")
    assert error.outcome is not None and error.outcome.failures
    assert error.report is not None and error.report.passes == ()


def test_a_changed_parameter_is_a_changed_value() -> None:
    def scale(module: Module) -> PassResult:
        weight = module.params["w"].value() * (1 + 1e-5)
        return PassResult(
            module.with_params(
                [Param("w", module.params["w"].type, module.params["w"].encoding, InMemory({"values": weight}))]
            ),
            1,
        )

    assert "differs in float64" in str(stop(made(scale)))
    module, _ = PassManager([made(scale, Lossy("relative_error", 1e-3))]).run(small())
    assert "its relative_error is" in str(stop(made(scale, Lossy("relative_error", 1e-7))))
    assert module.params["w"] is not small().params["w"]


def test_checks_can_be_off_but_not_the_others() -> None:
    def wrong(module: Module) -> PassResult:
        node = module.functions["forward"].nodes[1]
        return PassResult(swap_node(module, 1, Node(aten("abs.default", Slot(0)), node.inputs, node.outputs)), 1)

    _, report = PassManager([made(wrong)], check=False).run(small())
    assert report.passes[0].outcome is None and report.passes[0].check == "not checked"
    assert "says it changed nothing" in str(stop(made(lambda m: PassResult(renamed(m), 0)), check=False))


def test_a_law_of_the_pass_itself() -> None:
    error = stop(made(lambda m: PassResult(renamed(m), 1), ensures=("the sum of all parts is lost",)))
    assert "the sum of all parts is lost" in str(error)


def test_limit() -> None:
    changes = [made(lambda m: PassResult(renamed(m), 1)), CommonSubexpressions(), DeadCode()]
    _, report = PassManager(changes, limit=1).run(small())
    assert len(report.passes) == 1 and "stopped after 1 of 3 passes, before common-subexpressions" in report.stopped


def test_a_promise_about_some_rows_only() -> None:
    """A pass that changes rows which the mask leaves open keeps a Refines contract and breaks an Exact one."""

    def change_padding(module: Module) -> PassResult:
        forward = module.functions["forward"]
        builder = Builder("forward")
        builder.inputs, builder.nodes = list(forward.inputs), list(forward.nodes)
        mask = builder.emit(aten("unsqueeze.default", Slot(0), -1), forward.inputs[1])
        logits = builder.emit(aten("where.ScalarOther", Slot(0), Slot(1), 7.0), mask, forward.outputs[0])
        return PassResult(module.with_function(builder.finish([logits], forward.output_names)), 1)

    module = tiny_decoder(layers=1)
    PassManager([made(change_padding, Refines("attention_mask"))]).run(module)
    assert "breaks its contract (exact)" in str(stop(made(change_padding), module=module))


def test_the_same_run_gives_the_same_report() -> None:
    def run() -> list[Any]:
        _, report = PassManager([Canonicalise(), CommonSubexpressions(), DeadCode()]).run(tiny_decoder())
        return [{k: v for k, v in r.as_dict().items() if k not in ("seconds", "check")} for r in report.passes]

    assert run() == run()
