"""How the weight of a convolution lies in memory: row tiles of output channels, depth inside.

The output channels of a group are cut like :class:`planish.codegen.kernels.float_gemm.RowTiles` cuts rows. Tile t of
group g starts at element ``(g * channels + start(t)) * depth`` and holds ``[k][channel]``: the scalars of one step are
neighbours. k runs over input channel, kernel row and kernel column, as in the weight itself. Nothing is padded.
"""

from __future__ import annotations

import torch


def tile_bounds(channels: int, height: int) -> list[tuple[int, int]]:
    """First and last-but-one channel of every tile of at most ``height``, in order."""
    count = -(-channels // height)
    return [(t * channels // count, (t + 1) * channels // count) for t in range(count)]


def pack_filters(weight: torch.Tensor, groups: int, height: int) -> torch.Tensor:
    """Pack ``weight`` (out_channels, in_channels / groups, kernel height, kernel width) into one dimension.

    Raises:
        ValueError: for a weight that is not a float32 tensor of four dimensions, or groups that do not divide it.
    """
    if weight.dim() != 4 or weight.dtype != torch.float32 or weight.shape[0] % groups:
        raise ValueError(
            f"cannot pack a filter of shape {tuple(weight.shape)} and {weight.dtype} in {groups} groups: a convolution "
            "takes float32 (out_channels, in_channels / groups, height, width) with out_channels divisible by groups"
        )
    matrices = weight.reshape(groups, weight.shape[0] // groups, -1)
    tiles = [m[a:b].T.reshape(-1) for m in matrices for a, b in tile_bounds(matrices.shape[1], height)]
    return torch.cat(tiles)


def unpack_filters(packed: torch.Tensor, shape: torch.Size, groups: int, height: int) -> torch.Tensor:
    """The inverse of :func:`pack_filters` for a weight of ``shape``."""
    channels, depth = shape[0] // groups, shape[1] * shape[2] * shape[3]
    weight, at = packed.new_empty((groups, channels, depth)), 0
    for g in range(groups):
        for a, b in tile_bounds(channels, height):
            weight[g, a:b] = packed[at : at + (b - a) * depth].reshape(depth, b - a).T
            at += (b - a) * depth
    return weight.reshape(shape)
