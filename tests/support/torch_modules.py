"""Random nn.Modules: convolutions, norms, gated and plain MLPs, attention, embeddings and residuals, a few layers deep.

Each is legal by construction, small, in evaluation mode, with weights and running statistics that all matter, and comes
with example inputs and a choice of dynamic axes. Recurrent layers are left out: torch.export unrolls them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from planish.ir import Chooser
from planish.testing.chooser import HypothesisChooser

ENTRIES = 11


@dataclass(frozen=True)
class TorchCase:
    """A module to trace.

    Attributes:
        module: in evaluation mode.
        example: the inputs to trace it with.
        dynamic_shapes: as torch.export takes them, by position.
        other: inputs of other sizes along the dynamic axes.
    """

    module: nn.Module
    example: tuple[torch.Tensor, ...]
    dynamic_shapes: tuple[dict[int, Any], ...]
    other: tuple[torch.Tensor, ...]


class Residual(nn.Module):
    """x + block(x)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = self.block(x)
        return x + changed


class SelfAttention(nn.Module):
    """Attention over the second axis of [batch, tokens, width], through torch's own operator."""

    def __init__(self, width: int, heads: int, causal: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.parts = nn.ModuleList(
            [nn.Linear(width, 3 * width)] if fused else [nn.Linear(width, width) for _ in range(3)]
        )
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        joined = [part(x) for part in self.parts]
        parts = joined[0].chunk(3, dim=-1) if len(joined) == 1 else joined
        q, k, v = (p.view(batch, tokens, self.heads, -1).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        result: torch.Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return result


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int, act: nn.Module) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down, self.act = nn.Linear(inner, width, bias=False), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return result


class Scale(nn.Module):
    """x times a learned vector of its last axis, plus a buffer."""

    offset: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.register_buffer("offset", torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain + self.offset


class MeanOver(nn.Module):
    """The mean over some axes, or the first entry along one."""

    def __init__(self, axes: tuple[int, ...], first: bool = False) -> None:
        super().__init__()
        self.axes, self.first = axes, first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.select(self.axes[0], 0) if self.first else x.mean(self.axes)


def _activation(choose: Chooser) -> nn.Module:
    return choose.choice(
        [
            nn.ReLU(),
            nn.ReLU(inplace=True),
            nn.GELU(),
            nn.GELU(approximate="tanh"),
            nn.SiLU(),
            nn.Tanh(),
            nn.Sigmoid(),
            nn.LeakyReLU(0.1),
            nn.ELU(),
            nn.Hardswish(),
            nn.Softplus(),
        ]
    )


def _norm(choose: Chooser, width: int) -> nn.Module:
    return choose.choice(
        [nn.LayerNorm(width), nn.LayerNorm(width, elementwise_affine=False), nn.RMSNorm(width, eps=1e-5)]
    )


def _token_block(choose: Chooser, width: int, depth: int) -> nn.Module:
    """A block on [..., width] that keeps its shape; with `depth` left it may be a residual of another."""
    kinds: list[Callable[[], nn.Module]] = [
        lambda: _norm(choose, width),
        lambda: _activation(choose),
        lambda: Scale(width),
        lambda: nn.Dropout(0.3),
        lambda: nn.Linear(width, width, bias=choose.boolean()),
        lambda: GatedMlp(width, choose.integer(1, 7), _activation(choose)),
        lambda: SelfAttention(width, choose.choice([1, 2]), choose.boolean(), choose.boolean()),
    ]
    if depth:
        kinds.append(lambda: Residual(nn.Sequential(_norm(choose, width), _token_block(choose, width, depth - 1))))
    return choose.choice(kinds)()


def _token_case(choose: Chooser) -> tuple[list[nn.Module], tuple[int, ...], bool]:
    """Layers on tokens [batch, tokens, width], or on token ids through an embedding."""
    width, embedded = choose.choice([4, 6]), choose.boolean()
    layers: list[nn.Module] = [nn.Embedding(ENTRIES, width)] if embedded else []
    layers += [_token_block(choose, width, 2) for _ in range(choose.integer(1, 4))]
    if choose.boolean():
        layers.append(MeanOver((1,), first=choose.boolean()))
    layers.append(nn.Linear(width, choose.integer(1, 5)))
    return layers, (choose.integer(3, 6),) if embedded else (choose.integer(3, 6), width), embedded


def _image_block(choose: Chooser, channels: int, depth: int) -> nn.Module:
    """A block on [batch, channels, height, width] that keeps its shape."""
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.GroupNorm(choose.choice([1, 2]), channels),
        lambda: _activation(choose),
        lambda: nn.Conv2d(
            channels, channels, 3, padding=1, groups=choose.choice([1, 2, channels]), bias=choose.boolean()
        ),
        lambda: nn.Conv2d(channels, channels, 3, padding=2, dilation=2),
    ]
    if depth:
        kinds.append(lambda: Residual(nn.Sequential(*(_image_block(choose, channels, depth - 1) for _ in range(2)))))
    return choose.choice(kinds)()


def _image_case(choose: Chooser) -> tuple[list[nn.Module], tuple[int, ...], bool]:
    """Layers on images, ending in a mean over their axes or a flattening of them."""
    channels, height, width = choose.choice([2, 4]), choose.integer(6, 9), choose.integer(6, 9)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, choose.choice([1, 3]), stride=choose.choice([1, 2]))]
    layers += [_image_block(choose, channels, 1) for _ in range(choose.integer(1, 3))]
    if choose.boolean():
        layers.append(choose.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)]))
    layers.append(choose.choice([MeanOver((2, 3)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())]))
    layers.append(nn.Linear(channels, choose.integer(1, 4)))
    return layers, (3, height, width), False


def randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter and running statistic a value that shows: no gain of one, no bias of zero."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype.is_floating_point:
            drawn = torch.randn(tensor.shape, generator=generator) * 0.4
            positive = name.endswith("running_var")
            gain = tensor.dim() == 1 and bool((tensor == 1).all())
            tensor.data.copy_(drawn.abs() + 0.5 if positive else drawn + 1 if gain else drawn)


@st.composite
def torch_cases(draw: st.DrawFn) -> TorchCase:
    """Random modules with inputs; the batch is always a dynamic axis, the tokens of a sequence now and then."""
    choose = HypothesisChooser(draw)
    layers, trailing, ids = choose.choice([_token_case, _image_case])(choose)
    generator = torch.Generator().manual_seed(choose.integer(0, 1 << 16))
    module = nn.Sequential(*layers).eval()
    randomize(module, generator)
    axes: dict[int, Any] = {0: torch.export.Dim("B")}
    sizes = [choose.integer(2, 4), *trailing]
    others = [choose.integer(1, 5), *trailing]
    if len(trailing) < 3 and choose.boolean():
        axes[1], others[1] = torch.export.Dim("S"), choose.integer(1, 8)

    def inputs(shape: list[int]) -> tuple[torch.Tensor, ...]:
        if ids:
            return (torch.randint(0, ENTRIES, shape, generator=generator),)
        return (torch.randn(shape, generator=generator),)

    return TorchCase(module, inputs(sizes), (axes,), inputs(others))
