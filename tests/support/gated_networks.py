"""Networks of several tasks with gates that choose, channel by channel, between a branch of the task's own and a shared one.

Source: Bejnordi et al., InterroGate: Learning to Share, Specialize, and Prune Representations for Multi-task Learning (2024):
f_t = g_t * own_t + (1 - g_t) * shared, the next shared features a mixture of all f_t with weights that add up to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class _Gates(nn.Module):
    """Gate logits of every layer and task, mixing logits, and the penalty on channels that are a task's own."""

    def __init__(self, tasks: int, widths: Sequence[int], selects: bool) -> None:
        super().__init__()
        self.selects = selects
        self.alpha = nn.ModuleList(nn.ParameterList(torch.full((w,), 0.1) for _ in range(tasks)) for w in widths)
        self.beta = nn.ParameterList(torch.zeros(tasks, w) for w in widths)

    def mixed(
        self, layer: int, own: Sequence[torch.Tensor], shared: torch.Tensor, axis: int
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Each task's features, and the next shared ones."""
        shape = [-1 if n == axis % shared.ndim else 1 for n in range(shared.ndim)]
        features = []
        for alpha, mine in zip(self.alpha[layer].parameters(), own):
            probability = alpha.sigmoid()
            hard = (probability > 0.5).reshape(shape)
            if self.selects and not self.training:
                features.append(torch.where(hard, mine, shared))
            else:
                straight = probability.reshape(shape)
                gate = hard.to(mine.dtype) + (straight - straight.detach() if self.training else 0.0)
                features.append(gate * mine + (1 - gate) * shared)
        weights = self.beta[layer].softmax(0)
        return features, sum(w.reshape(shape) * f for w, f in zip(weights, features))  # type: ignore[return-value]

    def hinge(self, target: float) -> torch.Tensor:
        """How far the share of channels of their own lies above the target, in the mean over tasks."""
        of_tasks = zip(*(layer.parameters() for layer in self.alpha))
        shares = [torch.stack([alpha.sigmoid().mean() for alpha in layers]).mean() for layers in of_tasks]
        return torch.stack([F.relu(share - target) for share in shares]).mean()


class GatedConvolutions(_Gates):
    """images [batch, widths[0], height, width] -> for each task a feature map's mean, [batch, 3].

    Args:
        tasks: how many.
        widths: channels of the images and of every layer.
        selects: in evaluation, whether gates are `torch.where` or products with 0 and 1.
    """

    def __init__(self, tasks: int, widths: Sequence[int], selects: bool = True) -> None:
        super().__init__(tasks, widths[1:], selects)
        self.made_of = (tasks, widths, selects)

        def layers() -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))

        self.own, self.shared = nn.ModuleList(layers() for _ in range(tasks)), layers()
        self.heads = nn.ModuleList(nn.Linear(widths[-1], 3) for _ in range(tasks))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shared, features = images, [images] * len(self.own)
        for layer in range(len(self.shared)):
            own = [F.relu(branch[layer](f)) for branch, f in zip(self.own, features)]  # type: ignore[index]
            features, shared = self.mixed(layer, own, F.relu(self.shared[layer](shared)), 1)
        return tuple(head(f.sum((2, 3))) for head, f in zip(self.heads, features))


class _Branch(nn.Module):
    """The maps of one transformer layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.other_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)


class GatedTransformer(_Gates):
    """tokens [batch, count, width] -> for each task [batch, 3]; gates choose channels of queries, keys and values, and of
    what an MLP adds.

    Args:
        tasks, width, heads, layers: how many, and of what size.
    """

    def __init__(self, tasks: int, width: int, heads: int, layers: int) -> None:
        super().__init__(tasks, [3 * width, width] * layers, True)
        self.made_of, self.heads = (tasks, width, heads, layers), heads
        self.own = nn.ModuleList(nn.ModuleList(_Branch(width) for _ in range(layers)) for _ in range(tasks))
        self.shared = nn.ModuleList(_Branch(width) for _ in range(layers))
        self.scores = nn.ModuleList(nn.Linear(width, 3) for _ in range(tasks))

    def _attended(self, branch: _Branch, x: torch.Tensor, joined: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        q, k, v = joined.reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        y: torch.Tensor = x + branch.out(mixed)
        return y

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        streams = [tokens] * (len(self.own) + 1)
        for layer, shared in enumerate(self.shared):
            branches: list[_Branch] = [*(own[layer] for own in self.own), shared]  # type: ignore[index, list-item]
            joined = [b.joined(b.norm(x)) for b, x in zip(branches, streams)]
            own, mixture = self.mixed(2 * layer, joined[:-1], joined[-1], -1)
            streams = [self._attended(b, x, j) for b, x, j in zip(branches, streams, [*own, mixture])]
            added = [b.down(F.gelu(b.up(b.other_norm(x)))) for b, x in zip(branches, streams)]
            own, mixture = self.mixed(2 * layer + 1, added[:-1], added[-1], -1)
            streams = [x + y for x, y in zip(streams, [*own, mixture])]
        return tuple(score(x.mean(1)) for score, x in zip(self.scores, streams))
