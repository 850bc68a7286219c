"""What tests of training share: an easy language, encodings for a decoder, and one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from planish.ir import Encoding, Levels, Module
from planish.passes.roles import roles
from planish.passes.training import TrainingOptions

VOCABULARY = 11
WIDE = {"hidden": 32, "size": 8, "inner": 48}


def batches(seed: int = 0, padded: bool = True) -> Iterator[dict[str, torch.Tensor]]:
    """Endless runs of tokens, each the one before plus a step of its row, some rows padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        start, step = (torch.randint(1, VOCABULARY, (4, 1), generator=generator) for _ in range(2))
        mask = torch.ones(4, 9, dtype=torch.bool)
        mask[0, :3] = not padded
        yield {"input_ids": (start + step * torch.arange(9)) % VOCABULARY, "attention_mask": mask}


def linears(module: Module, make: Callable[[int], Encoding]) -> dict[str, Encoding]:
    """An encoding for every linear map's weight, from the length of its rows."""
    return {n: make(int(module.params[n].type.shape[-1])) for n, r in roles(module).items() if r == {"linear"}}


def stretched(module: Module) -> dict[str, Encoding]:
    return linears(module, lambda n: Levels("stretched", n))


def same(a: Module, b: Module) -> bool:
    """Whether all weights have the same storage."""
    return all(a.params[n].digest() == b.params[n].digest() for n in a.params)


def options(**changes: Any) -> TrainingOptions:
    return TrainingOptions(**{"steps": 6, "learning_rate": 1e-2, "checkpoint_every": 2, **changes})


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine; and threads that wait for each other cost more than small products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
