"""Tensors encoded and decoded a few rows at a time hold the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from planish.ir import Encoding, Float8, Grouped, GroupedInt, Levels, MxFp4, NvFp4, TensorType
from planish.ir.encodings import slices
from planish.passes.scale_search import encode_searched

ENCODINGS = [GroupedInt(3, 16), GroupedInt(5, 32, torch.int8, True), Levels("ternary", 64), NvFp4(), MxFp4(), Float8()]


def searched(encoding: Encoding) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """The encoder that looks for better scales, where there is one."""
    if isinstance(encoding, Grouped):
        return lambda tensor: encode_searched(encoding, tensor)
    return encoding.encode_four_over_six if isinstance(encoding, NvFp4) else encoding.encode


@pytest.mark.parametrize("shape", [(7, 64), (2, 3, 64), (64,)])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_slices_do_not_show(encoding: Encoding, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    type = TensorType(torch.float32, shape)
    for encode in (encoding.encode, searched(encoding)):
        monkeypatch.setattr(slices, "SLICE_ELEMENTS", 1 << 20)
        whole = encode(tensor)
        decoded = encoding.decode(whole, type)
        monkeypatch.setattr(slices, "SLICE_ELEMENTS", 150)
        cut = encode(tensor)
        assert cut.keys() == whole.keys() == encoding.layout(type).keys()
        assert all(torch.equal(cut[field], whole[field]) and cut[field].shape == whole[field].shape for field in whole)
        assert torch.equal(encoding.decode(cut, type), decoded)
