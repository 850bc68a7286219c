"""Outliers that are put in: the function stays, and they are there."""

from __future__ import annotations

import itertools

import pytest
import torch

from planish.ir import InputError, Interpreter, Node
from planish.ir.ops import RmsNorm
from planish.passes.check import Checker
from planish.passes.contract import Exact
from planish.passes.dead_code import DeadCode
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.testing.outliers import inject, strength
from planish.testing.tiny_decoder import tiny_decoder
from planish.testing.training import WIDE, batches


def test_outliers_change_no_function_and_are_stronger_the_fewer_channels_hold_them() -> None:
    module, _ = PassManager([FoldNormGains(), DeadCode()], check=False).run(tiny_decoder(**WIDE))
    data = list(itertools.islice(batches(padded=False), 4))
    made = inject(module, data, channels=2)
    assert not Checker(None, 0).check(module, made.module, Exact(), {}).failures
    assert made.before == strength(module, data) and made.after == strength(made.module, data)
    assert made.after.kurtosis > 1.5 * made.before.kurtosis and made.after.peak > 1.2 * made.before.peak
    # What is on a channel of its own is spread by turning all of them.
    assert inject(module, data, channels=0).after.kurtosis == pytest.approx(made.before.kurtosis, rel=1e-4)


def test_they_lie_on_the_channels_asked_for() -> None:
    module, _ = PassManager([FoldNormGains(), DeadCode()], check=False).run(tiny_decoder(**WIDE))
    data = list(itertools.islice(batches(padded=False), 4))
    made = inject(module, data, channels=1, seed=3)
    size = torch.zeros(32)

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        if isinstance(node.op, RmsNorm):
            size.add_(results[0].square().sum((0, 1)))

    for batch in data:
        Interpreter(made.module, observe=observe).run("forward", batch)
    place = torch.randperm(32, generator=torch.Generator().manual_seed(3))[0]
    assert int(size.argmax()) == int(place)


def test_gains_must_be_folded() -> None:
    with pytest.raises(InputError, match=r"no space over which norms are taken can be turned: the space of 32 indices"):
        inject(tiny_decoder(**WIDE), list(itertools.islice(batches(), 1)))
