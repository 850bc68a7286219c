"""torch.fx graphs are imported with the names of their placeholders."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from planish.frontends import import_graph_module
from planish.ir import InputError, Interpreter


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.drop(self.linear(x))) + y.view(-1, 3)


def test_symbolic_trace() -> None:
    graph = fx.symbolic_trace(Net().eval())
    batch = torch.export.Dim("B")
    module = import_graph_module(graph, (torch.randn(4, 4), torch.randn(4, 3)), {"x": {0: batch}, "y": {0: batch}})
    function = module.functions["forward"]
    assert [f"{v.name}: {v.type}" for v in function.inputs] == ["x: f32[B, 4]", "y: f32[B, 3]"]
    assert [n.op.overload for n in function.nodes] == ["linear.default", "relu.default", "add.Tensor"]  # type: ignore[attr-defined]
    inputs = (torch.randn(2, 4), torch.randn(2, 3))
    with torch.no_grad():
        assert torch.equal(Interpreter(module).run("forward", inputs)[0], graph(*inputs))


def test_a_rewritten_graph() -> None:
    graph = fx.symbolic_trace(Net().eval())
    for node in graph.graph.find_nodes(op="call_function", target=torch.relu):
        node.target = torch.sigmoid
    graph.recompile()
    module = import_graph_module(graph, (torch.randn(4, 4), torch.randn(4, 3)))
    assert "sigmoid.default" in [n.op.overload for n in module.functions["forward"].nodes]  # type: ignore[attr-defined]


def test_bad_graphs() -> None:
    with pytest.raises(InputError, match=r"a torch\.fx\.GraphModule is needed, got Net"):
        import_graph_module(Net(), torch.randn(4, 4))  # type: ignore[arg-type]
    graph = fx.symbolic_trace(Net().eval())
    first, *_, last = [n for n in graph.graph.nodes if n.op != "output"]
    first.append(last)
    with pytest.raises(InputError, match="the graph is not well formed"):
        import_graph_module(graph, (torch.randn(4, 4), torch.randn(4, 3)))
