"""Parameters: read late, checked when read, not kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from planish.ir import Computed, Dense, GroupedInt, InFile, InMemory, InputError, Param, TensorType, dense_param
from planish.testing.tensors import generators

TYPE = TensorType(torch.float32, (3, 8))
DATA = torch.arange(24, dtype=torch.float32).reshape(3, 8)


def from_file(path: Path, **keys: str) -> Param:
    return Param("layer.weight", TYPE, Dense(torch.float32), InFile(path, keys or {"values": "w"}))


def test_a_file_is_read_when_asked_and_each_time(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    param = from_file(path)
    assert param.nbytes == 24 * 4, "nothing is read for this"
    with pytest.raises(InputError, match=r"cannot read w from .*model\.safetensors"):
        param.value()
    save_file({"w": DATA, "other": DATA + 1}, path)
    assert torch.equal(param.value(), DATA)
    save_file({"w": DATA * 2}, path)
    assert torch.equal(param.value(), DATA * 2)


def test_a_narrow_file_is_widened_when_decoded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": DATA.to(torch.bfloat16)}, path)
    param = Param("w", TYPE, Dense(torch.bfloat16), InFile(path, {"values": "w"}))
    assert param.value().dtype == torch.float32
    assert torch.equal(param.value(), DATA)


def test_several_fields_come_from_several_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    storage = GroupedInt(4, 4).encode(DATA)
    save_file({"q": storage["values"], "s": storage["scales"]}, path)
    param = Param("w", TYPE, GroupedInt(4, 4), InFile(path, {"values": "q", "scales": "s"}))
    assert torch.equal(param.value(), GroupedInt(4, 4).decode(storage, TYPE))


@given(st.data())
def test_a_truncated_file_is_one_error(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({"w": DATA}, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(InputError, match="cannot read w from"):
            from_file(path).value()


@pytest.mark.parametrize(
    "tensors, keys, message",
    [
        ({"v": DATA}, {"values": "w"}, "cannot read w from"),
        ({"w": DATA.T.contiguous()}, {"values": "w"}, r"is f32\[8, 3\], but f32\[3, 8\] was expected"),
        ({"w": DATA.to(torch.float16)}, {"values": "w"}, r"is f16\[3, 8\], but f32\[3, 8\] was expected"),
        ({"w": DATA}, {"scales": "w"}, r"has storage fields \['scales'\], but its encoding f32 needs \['values'\]"),
    ],
)
def test_storage_that_is_not_the_encodings_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], keys: dict[str, str], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        from_file(path, **keys).value()


def test_computed_storage_is_computed_at_each_reading() -> None:
    calls: list[int] = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"values": DATA}

    param = Param("w", TYPE, Dense(torch.float32), Computed(compute))
    assert not calls
    assert torch.equal(param.value(), param.value())
    assert len(calls) == 2


@given(generators(), st.integers(0, 23))
def test_the_digest_sees_every_byte(generator: torch.Generator, position: int) -> None:
    data = torch.randn(3, 8, generator=generator)
    other = data.clone()
    other.view(-1)[position] = -other.view(-1)[position]
    assert dense_param("a", data).digest() == dense_param("b", data.clone()).digest()
    assert dense_param("a", data).digest() != dense_param("a", other).digest()


def test_the_digest_sees_shape_dtype_and_field() -> None:
    digests = {
        dense_param("w", DATA).digest(),
        dense_param("w", DATA.reshape(8, 3)).digest(),
        dense_param("w", DATA.view(torch.int32)).digest(),
        Param("w", TYPE, GroupedInt(4, 4), InMemory(GroupedInt(4, 4).encode(DATA))).digest(),
    }
    assert len(digests) == 4
    dense_param("scalar", torch.tensor(1.5)).digest()
    dense_param("empty", torch.zeros(0, 3)).digest()
    dense_param("strided", DATA.T).digest()
