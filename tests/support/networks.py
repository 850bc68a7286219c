"""Plain networks, from a few thousand operations to ordinary sizes: a residual network and a vision transformer.

Both are ordinary modules in evaluation mode, in float32, with seeded weights and running statistics that all matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norms and a way around them, projected where the shape changes (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.around: nn.Module = project if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.around(x))


class ResidualNetwork(nn.Module):
    """images [batch, 3, height, width] -> scores [batch, classes].

    Args:
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: residual blocks of each stage.
        classes: scores to give.
    """

    def __init__(self, widths: Sequence[int], blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        stages: list[nn.Module] = []
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for block in range(blocks):
                stages.append(ResidualBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.pool(self.stages(self.stem(images))).flatten(1))
        return scores


class TransformerBlock(nn.Module):
    """Attention and a GELU MLP, each after a layer norm and added to what came in (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        joined = self.joined(self.attention_norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = joined.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(mixed)
        mixed_again: torch.Tensor = self.mlp(self.mlp_norm(x))
        return x + mixed_again


class VisionTransformer(nn.Module):
    """images [batch, 3, size, size] -> scores [batch, classes].

    Args:
        size, patch: of an image and of its patches, in pixels.
        width, heads, layers: of the transformer.
        classes: scores to give.
        class_token: whether the scores come from a token of their own; from the mean of all patches otherwise.
    """

    def __init__(
        self, size: int, patch: int, width: int, heads: int, layers: int, classes: int, class_token: bool = True
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + class_token, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.positions))
        scores: torch.Tensor = self.head(x.mean(1) if self.class_token is None else x[:, 0])
        return scores


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode, with weights that keep the size of what passes through, gains about one, and biases
    and running statistics that show."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.dtype.is_floating_point:
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.data.copy_(0.5 + drawn.abs())
        elif tensor.dim() in (2, 4):
            tensor.data.copy_(drawn * tensor[0].numel() ** -0.5)
        else:
            tensor.data.copy_(0.1 * drawn + (tensor.dim() == 1 and bool((tensor == 1).all())))
    return module.eval()


def residual_network(widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 2, classes: int = 1000) -> nn.Module:
    """A seeded residual network; by default of 18 layers, 3.6 GFLOP on an image of 224 x 224."""
    return seeded(ResidualNetwork(widths, blocks, classes))


def vision_transformer(
    size: int = 224,
    patch: int = 16,
    width: int = 384,
    heads: int = 6,
    layers: int = 6,
    classes: int = 1000,
    class_token: bool = True,
) -> nn.Module:
    """A seeded vision transformer; by default 4.6 GFLOP on an image of 224 x 224."""
    return seeded(VisionTransformer(size, patch, width, heads, layers, classes, class_token))
