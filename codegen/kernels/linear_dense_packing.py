"""How the weight of a dense linear layer lies in memory: column panels, depth inside.

``packed[p, k, j] = weight[p * width + j, k]``, zero where ``p * width + j`` is past the last output feature. One step k
of the kernel then reads one contiguous row of a panel, and a whole panel is one stream.
"""

from __future__ import annotations

import torch

_STORED = {
    torch.float32: torch.float32,
    torch.float16: torch.float16,
    torch.bfloat16: torch.uint16,
    torch.float8_e4m3fn: torch.uint8,
}


def pack_panels(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """Pack ``matrix`` (rows, depth) into (ceil(rows / width), depth, width), padded with zeros.

    float32 and float16 keep their dtype; bfloat16 becomes uint16, its bits, and float8_e4m3fn uint8.

    Raises:
        ValueError: for another dtype or another rank.
    """
    if matrix.dim() != 2 or matrix.dtype not in _STORED:
        raise ValueError(
            f"cannot pack a weight of {matrix.dim()} dimensions and {matrix.dtype}: a dense linear kernel takes a matrix "
            "of float32, float16, bfloat16 or float8_e4m3fn"
        )
    rows, depth = matrix.shape
    panels = -(-rows // width)
    stored = matrix.view(_STORED[matrix.dtype])
    padded = torch.nn.functional.pad(stored, (0, 0, 0, panels * width - rows))
    return padded.reshape(panels, width, depth).permute(0, 2, 1).contiguous()


def unpack_panels(packed: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of :func:`pack_panels`; uint16 is read as bfloat16. Returns (rows, depth)."""
    values = packed.view(torch.bfloat16) if packed.dtype == torch.uint16 else packed
    panels, depth, width = values.shape
    return values.permute(0, 2, 1).reshape(panels * width, depth)[:rows].contiguous()
