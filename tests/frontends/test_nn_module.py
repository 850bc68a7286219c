"""Modules imported through torch.export compute what they compute in eager torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from planish.frontends import import_module
from planish.ir import InputError, Interpreter, Module, UnsupportedError
from planish.testing.profiles import share
from planish.testing.torch_modules import Residual, TorchCase, randomize, torch_cases

EPSILON = torch.finfo(torch.float32).eps


def assert_same(module: Module, eager: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """The rule: float32 differs from eager's float64 by at most 4 times what eager's own float32 does."""
    double = copy.deepcopy(eager).double()
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        single, exact = _flat(copy.deepcopy(eager)(*_copies(inputs))), _flat(double(*_copies(wide)))
    ours = list(Interpreter(module).run("forward", inputs).outputs.values())
    promoted = list(Interpreter(module, promote=True).run("forward", inputs).outputs.values())
    assert len(ours) == len(exact)
    for f32, f64, mine, mine64 in zip(single, exact, ours, promoted):
        assert mine.dtype == f32.dtype and mine.shape == f64.shape
        scale = float(f64.abs().max()) if f64.numel() else 0.0
        bound = 4 * float((f32.double() - f64).abs().max()) + 4 * EPSILON * scale
        assert float((mine.double() - f64).abs().max()) <= bound
        assert float((mine64.double() - f64).abs().max()) <= 1e-10 * max(1.0, scale)


def _copies(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    # An eager module may write into its input in place.
    return tuple(x.clone() for x in inputs)


def _flat(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@given(torch_cases())
@share(0.04)
def test_random_modules(case: TorchCase) -> None:
    _check_case(case)


@pytest.mark.full
@given(torch_cases())
@share(0.6)
def test_many_random_modules(case: TorchCase) -> None:
    _check_case(case)


def _check_case(case: TorchCase) -> None:
    module = import_module(case.module, case.example, case.dynamic_shapes)
    for inputs in (case.example, case.other):
        assert_same(module, case.module, inputs)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        body = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=4)]
        self.block = Residual(nn.Sequential(*body))
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu_(self.block(self.stem(x))))


class Vit(nn.Module):
    """Patches, a class token, learned positions and pre-norm blocks with fused attention."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, size, 4, stride=4)
        self.first = nn.Parameter(torch.zeros(1, 1, size))
        self.places = nn.Parameter(torch.zeros(1, 7, size))
        layer = nn.TransformerEncoderLayer(
            size, 3, 20, dropout=0.1, batch_first=True, norm_first=True, activation="gelu"
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def ready(module: nn.Module) -> nn.Module:
    randomize(module, torch.Generator().manual_seed(1))
    return module.eval()


def test_cnn_with_dynamic_batch() -> None:
    cnn = ready(Cnn())
    module = import_module(cnn, torch.randn(2, 3, 17, 14), {"x": {0: torch.export.Dim("B")}})
    assert [str(v.type) for v in module.functions["forward"].inputs] == ["f32[B, 3, 17, 14]"]
    for batch in (1, 2, 5):
        assert_same(module, cnn, (torch.randn(batch, 3, 17, 14),))


def test_cnn_with_dynamic_images() -> None:
    cnn = ready(Cnn())
    axes = {2: torch.export.Dim("H", min=8, max=64), 3: torch.export.Dim("W", min=8, max=64)}
    module = import_module(cnn, (torch.randn(2, 3, 17, 14),), (axes,))
    assert [str(v.type) for v in module.functions["forward"].inputs] == ["f32[2, 3, H, W]"]
    assert module.metadata["dim_ranges"] == (("H", 8, 64), ("W", 8, 64))
    for shape in ((17, 14), (8, 8), (9, 21)):
        assert_same(module, cnn, (torch.randn(2, 3, *shape),))


def test_vit() -> None:
    vit = ready(Vit())
    module = import_module(vit, (torch.randn(2, 3, 8, 12),), {"x": {0: torch.export.Dim("B")}})
    for batch in (1, 3):
        assert_same(module, vit, (torch.randn(batch, 3, 8, 12),))


class Several(nn.Module):
    """Keyword arguments, containers in and out, tied weights, constants, reductions, indexing and writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.table = torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.register_buffer("shift", torch.tensor([0.5]))

    def forward(
        self, x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], *, scale: torch.Tensor
    ) -> dict[str, Any]:
        y = self.b(self.a(x)) * self.table + torch.tensor(2.0)
        z = y.clone()
        z[:, 0] = 0.0
        z[:, 1:3] += pair[0][:, 1:3]
        top = y.max(dim=-1)
        parts = torch.split(z, [1, 3], dim=-1)
        return {
            "sum": z.sum() * scale,
            "top": (top.values, parts[1].mean(-1)),
            "where": torch.where(pair[1] > 0, y, self.shift),
        }


def test_containers_keywords_and_ties() -> None:
    several = Several().eval()
    x, pair, scale = torch.randn(3, 4), (torch.randn(3, 4), torch.randn(3, 4)), torch.tensor(0.3)
    batch = torch.export.Dim("rows")
    shapes = {"x": {0: batch}, "pair": ({0: batch}, {0: batch}), "scale": {}}
    module = import_module(several, (x, pair), shapes, example_kwargs={"scale": scale})
    function = module.functions["forward"]
    assert [v.name for v in function.inputs] == ["x", "pair_0", "pair_1", "scale"]
    assert [str(v.type) for v in function.inputs] == ["f32[rows, 4]"] * 3 + ["f32[]"]
    assert function.output_names == ("sum", "top_0", "top_1", "where")
    assert "a.weight" in module.params and "b.weight" not in module.params
    rows = (torch.randn(6, 4), (torch.randn(6, 4), torch.randn(6, 4)))
    with torch.no_grad():
        expected = _flat(several(*rows, scale=scale))
    result = Interpreter(module).run("forward", [rows[0], *rows[1], scale])
    for want, got in zip(expected, result.outputs.values()):
        torch.testing.assert_close(got, want)


def test_output_names_can_be_given() -> None:
    module = import_module(nn.Linear(3, 2), torch.randn(4, 3), output_names=["logits"])
    assert module.functions["forward"].output_names == ("logits",)
    assert import_module(nn.Linear(3, 2), torch.randn(4, 3)).functions["forward"].output_names == ("output",)
    with pytest.raises(InputError, match="1 output, but 2 names"):
        import_module(nn.Linear(3, 2), torch.randn(4, 3), output_names=["a", "b"])


def test_axes_may_be_named_by_torch() -> None:
    auto = import_module(nn.ReLU(), torch.randn(3, 4), {"input": {0: torch.export.Dim.AUTO, 1: None}})
    assert str(auto.functions["forward"].inputs[0].type) == "f32[input_0, 4]"
    rows = torch.export.Dim("rows")
    listed = import_module(nn.ReLU(), torch.randn(3, 4), [[rows, None]])
    assert str(listed.functions["forward"].inputs[0].type) == "f32[rows, 4]"


def test_not_a_module() -> None:
    with pytest.raises(InputError, match=r"a torch\.nn\.Module is needed, got builtin_function_or_method"):
        import_module(torch.relu, torch.randn(2))  # type: ignore[arg-type]


def test_weights_on_meta_are_refused() -> None:
    with torch.device("meta"):
        empty = nn.Linear(3, 2)
    with pytest.raises(UnsupportedError, match=r"'weight' has no values.*'bias' has no values"):
        import_module(empty, torch.randn(4, 3, device="meta"))
