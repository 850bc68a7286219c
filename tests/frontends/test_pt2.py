"""A .pt2 file is read as data: what it computes is kept, and nothing in it can run code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish.frontends import import_module, import_pt2
from planish.ir import InputError, Interpreter, UnsupportedError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 3, bias=False)
        self.tied.weight = self.linear.weight
        self.register_buffer("shift", torch.ones(3))
        self.table = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        z = self.linear(x) + self.tied(x) + self.shift
        return {"sum": z * self.table, "flat": y.reshape(-1)[: x.shape[0]].clamp(max=1.0)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    net, batch = Net().eval(), torch.export.Dim("B")
    shapes = {"x": {0: batch}, "y": {0: batch}}
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.randn(2, 4), torch.randn(2, 3)), dynamic_shapes=shapes), path)
    return net, path


def test_round_trip(file: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = file

    def unpickle(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr("torch.load", unpickle)
    monkeypatch.setattr("pickle.loads", unpickle)
    monkeypatch.setattr("pickle.load", unpickle)
    module = import_pt2(path)
    function = module.functions["forward"]
    assert [str(v.type) for v in function.inputs] == ["f32[x_0, 4]", "f32[x_0, 3]"]
    assert function.output_names == ("sum", "flat")
    assert sorted(module.params) == ["linear.bias", "linear.weight", "shift", "table"]
    inputs = (torch.randn(5, 4), torch.randn(5, 3))
    with torch.no_grad():
        expected = net(*inputs)
    result = Interpreter(module).run("forward", inputs)
    assert all(torch.equal(result.outputs[name], expected[name]) for name in expected)
    assert "test_pt2.py:" in function.nodes[0].source and function.nodes[0].source.endswith("in linear")


def test_the_same_module_as_without_the_file(file: tuple[nn.Module, Path]) -> None:
    net, path = file
    batch = torch.export.Dim("B")
    direct = import_module(net, (torch.randn(2, 4), torch.randn(2, 3)), {"x": {0: batch}, "y": {0: batch}})
    overloads = [
        [getattr(n.op, "overload", "") for n in m.functions["forward"].nodes] for m in (direct, import_pt2(path))
    ]
    assert overloads[0] == overloads[1]


def altered(path: Path, folder: Path, change: Callable[[str, bytes], bytes | None], **extra: bytes) -> Path:
    """A copy of the archive with members changed, left out (None) or added."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(folder / "altered.pt2", "w") as copy:
        for name in archive.namelist():
            content = change(name, archive.read(name))
            if content is not None:
                copy.writestr(name, content)
        for name, content in extra.items():
            copy.writestr(f"net/{name}", content)
    return folder / "altered.pt2"


def edited(path: Path, folder: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of the archive whose program was edited as JSON."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    return altered(path, folder, change)


MARK: list[str] = []


class Code:
    """Unpickling this, or looking it up, leaves a mark."""

    def __reduce__(self) -> tuple[Any, Any]:
        return MARK.append, ("ran",)


def test_pickled_example_inputs_are_never_opened(file: tuple[nn.Module, Path], tmp_path: Path) -> None:
    torch.save(Code(), tmp_path / "code.pt")
    bad = (tmp_path / "code.pt").read_bytes()
    path = altered(file[1], tmp_path, lambda name, content: bad if "sample_inputs" in name else content)
    assert import_pt2(path).functions["forward"].output_names == ("sum", "flat")
    assert not MARK


@pytest.mark.parametrize(
    "member",
    [
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/aotinductor/model/a.so",
        "data/weights/model.pt",
    ],
)
def test_members_that_are_not_data(file: tuple[nn.Module, Path], tmp_path: Path, member: str) -> None:
    path = altered(file[1], tmp_path, lambda name, content: content, **{member: b"code"})
    with pytest.raises(UnsupportedError, match=f"holds {member}, which torch would unpickle or run"):
        import_pt2(path)


def test_pickled_tensors(file: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else content

    with pytest.raises(UnsupportedError, match="holds a pickled tensor"):
        import_pt2(altered(file[1], tmp_path, change))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Symbol('s1').__class__",
        "().__class__",
        "exec('1')",
        "s1",
        "Symbol('s1', positive=True) if 1 else 2",
        "lambda: 1",
        "Max(1, [2][0])",
        "1 .real",
    ],
)
def test_size_expressions_that_are_more_than_arithmetic(
    file: tuple[nn.Module, Path], tmp_path: Path, text: str
) -> None:
    def edit(document: Any) -> None:
        for meta in document["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    with pytest.raises(UnsupportedError, match="which is not plain arithmetic"):
        import_pt2(edited(file[1], tmp_path, edit))


@pytest.mark.parametrize(
    "target", ["torch.hub.load", "_operator.attrgetter", "torch.ops.load_library", "os.system", "#ext:op"]
)
def test_calls_that_are_no_operators(file: tuple[nn.Module, Path], tmp_path: Path, target: str) -> None:
    def edit(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(UnsupportedError, match=f"calls '{target}', which is not an operator"):
        import_pt2(edited(file[1], tmp_path, edit))


def test_containers_that_torch_would_import(file: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def edit(document: Any) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = signature["out_spec"].replace("builtins.dict", "collections.defaultdict")

    with pytest.raises(UnsupportedError, match=r"passes collections\.defaultdict"):
        import_pt2(edited(file[1], tmp_path, edit))


def test_files_that_are_no_programs(file: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        import_pt2(tmp_path / "absent.pt2")
    (tmp_path / "short.pt2").write_bytes(file[1].read_bytes()[:900])
    with pytest.raises(InputError, match=r"damaged or not a \.pt2 archive"):
        import_pt2(tmp_path / "short.pt2")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(InputError, match="is no exported program"):
        import_pt2(tmp_path / "other.pt2")
    path = altered(file[1], tmp_path, lambda name, content: None if name.endswith("weight_0") else content)
    with pytest.raises(InputError, match="cannot be loaded by torch"):
        import_pt2(path)
    path = altered(file[1], tmp_path, lambda name, content: b"{" if name.endswith("model.json") else content)
    with pytest.raises(InputError, match="is not JSON"):
        import_pt2(path)
