"""Learned rotations: their gradient, that what is learned on is what is deployed, runs that are cut, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Builder, InputError, Interpreter, Module, TensorType, dense_param
from planish.ir.ops import Embedding, Linear
from planish.passes.check import Checker
from planish.passes.contract import Exact
from planish.passes.dead_code import DeadCode
from planish.passes.derive.plan import Inputs
from planish.passes.derive.programs import derive
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Pass
from planish.passes.quantize import Quantize
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_cache import QuantizeCache
from planish.passes.rotation_fusion import Rotation, RotationFusion, drawn, rotatable
from planish.passes.selection import Rule
from planish.passes.training import RotationOptions, find_rotations
from planish.passes.training.cayley import tangent
from planish.passes.training.deployment import Deployment, deployment
from planish.passes.training.rotations import Rotated
from planish.testing.tiny_decoder import tiny_decoder
from planish.testing.training import WIDE, batches, same

FOUR: list[Pass] = [Quantize(group=8), QuantizeActivations(bits=4)]
CACHES = QuantizeCache(keys="int4", values="int4", budget=1.0)


def decoder(**changes: Any) -> Module:
    """Without gains."""
    module = tiny_decoder(**{**WIDE, **changes})
    return PassManager([FoldNormGains(), DeadCode()], check=False).run(module)[0]


def options(**changes: Any) -> RotationOptions:
    return RotationOptions(**{"steps": 6, "learning_rate": 0.5, "momentum": 0.5, "checkpoint_every": 2, **changes})


def pair(table: torch.Tensor, weight: torch.Tensor) -> Module:
    """y = table[ids] @ weight.T, float64: one space between a table [9, n] and a weight [m, n]."""
    module = Module({}, {"table": dense_param("table", table), "weight": dense_param("weight", weight)})
    b = Builder("forward")
    rows = b.emit(Embedding(), b.input("ids", TensorType(torch.int64, (4,))), module.param_ref("table"))
    return module.with_function(b.finish([b.emit(Linear(), rows, module.param_ref("weight"), None)], ["y"]))


def numbers(*shape: int, seed: int, whole: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-9, 10, shape, generator=generator).double()
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# What GPTQ will round stays as it is while rotations are learned.
CODES_ALONE: list[Pass] = [
    Quantize(group="row", method="gptq", rules=(Rule(kind="embedding", format=None),)),
    QuantizeActivations(bits=4),
]


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 99))
def test_the_gradient_along_the_group_is_that_of_the_errors_alone(size: int, outs: int, seed: int) -> None:
    """With Y = Q(X R) R^T W^T and dR = R A it is -<dL/dY, e A R^T W^T> for e = Q(X R) - X R: no term without an error.
    The network's matrix is M = R^T, and moves as M B."""
    table, weight, upstream = numbers(9, size, seed=seed), numbers(outs, size, seed=seed + 1), numbers(4, outs, seed=1)
    module, ids = pair(table, weight), torch.tensor([0, 5, 3, 5])
    matrix = Rotation("random", size, seed).matrix
    network = Rotated(deployment(module, CODES_ALONE, "forward"), rotatable(module, "all"), [matrix])
    (network({"ids": ids})["y"] * upstream).sum().backward()
    (parameter,) = network.rotations
    assert parameter.grad is not None
    direction = numbers(size, size, seed=seed + 2)
    direction = direction - direction.T
    found = float((tangent(matrix, parameter.grad) * direction).sum())
    turned, back = table[ids] @ matrix.T, matrix @ weight.T
    scale = turned.abs().amax(-1, keepdim=True) / 7
    error = (turned / scale).round() * scale - turned
    along = -matrix @ direction @ matrix.T
    expected = -float((upstream * (error @ along @ back)).sum())
    # Two terms of this size cancel but for the error.
    allowed = 16 * size * 2.0**-53 * float((upstream.abs() * (turned.abs() @ along.abs() @ back.abs())).sum())
    assert abs(found - expected) <= allowed * size


@given(st.integers(2, 9), st.integers(0, 99))
def test_without_rounding_it_is_exactly_zero(size: int, seed: int) -> None:
    """On small integers, and rotations that are permutations with signs."""
    module = pair(numbers(9, size, seed=seed, whole=True), numbers(4, size, seed=seed + 1, whole=True))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    matrix = torch.eye(size, dtype=torch.float64)[order] * numbers(size, seed=seed).sign()
    network = Rotated(Deployment(module, {}, {}), rotatable(module, "all"), [matrix], scaled=True)
    (network({"ids": torch.tensor([1, 2, 0, 8])})["y"] * numbers(4, 4, seed=3, whole=True)).sum().backward()
    (parameter,) = network.rotations
    assert parameter.grad is not None and parameter.grad.any()
    assert not tangent(matrix, parameter.grad).any()


def test_the_graph_that_is_learned_on_is_the_one_that_is_deployed() -> None:
    """In float64, against the passes themselves and the programs that keep caches. A code that falls to the other side of a
    half would change a logit by orders of magnitude more than the roundings of a few hundred products."""
    module = decoder(dtype=torch.float64)
    passes: list[Pass] = [*FOUR, CACHES]
    found, batch = rotatable(module, "all"), next(batches(padded=False))
    learned = find_rotations(module, batches(), passes, options(steps=2))
    matrices = [rotation.matrix for rotation in learned.rotations]
    network = Rotated(deployment(module, passes, "forward"), found, matrices)
    with torch.no_grad():
        expected = network(batch)["logits"][:, -1:]
    small = PassManager(FOUR, check=False).run(learned.applied(module).module)[0]
    programs, _ = PassManager([CACHES], check=False).run(derive(small, Inputs()))
    given = {"input_ids": batch["input_ids"], "length": torch.full((4,), 9)}
    names = [v.name for v in programs.functions["prefill"].inputs]
    assert set(names) == {*given}
    states = {n: torch.zeros(4, 9, *s.type.shape[2:], dtype=torch.float64) for n, s in programs.states.items()}
    found_logits = Interpreter(programs).run("prefill", given, states)[0]
    assert float((found_logits - expected).abs().max()) <= 1e-10 * float(expected.abs().max())
    plain = Interpreter(small).run("forward", batch)[0][:, -1:]
    # Without rounded caches it is another network.
    assert float((plain - expected).abs().max()) > 1e-3 * float(expected.abs().max())


def test_with_parts_only_what_lies_between_them_is_kept() -> None:
    """Every tensor that a backward pass keeps goes through a hook."""
    module, batch, kept = decoder(), next(batches()), []
    found = rotatable(module, "all")
    for parts in (1, 6):
        matrices = [rotation.matrix for rotation in drawn(found, "hadamard", 0)]
        network = Rotated(deployment(module, FOUR, "forward"), found, matrices, parts=parts)
        saved: list[int] = []

        def keep(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(batch)
        kept.append(sum(saved))
    # The stream [4, 9, 32] in front of each of six parts, and as much again where a cut is not between two layers.
    assert kept[1] <= 2 * 6 * 4 * 9 * 32 < kept[0] / 6


def test_weights_for_gptq_are_not_rounded_and_others_are() -> None:
    module = decoder()
    rules = (Rule(match="down$", format=4, method="gptq"),)
    chosen = deployment(module, [Quantize(group=8, rules=rules)], "forward").weights
    assert "0.q" in chosen and "0.down" not in chosen
    searched = deployment(module, [Quantize(group=8, method="mse")], "forward").weights["0.q"]
    weight = module.params["0.q"].value()
    plain = deployment(module, [Quantize(group=8)], "forward").weights["0.q"]
    assert float((searched(weight) - weight).norm()) < float((plain(weight) - weight).norm())
    after = PassManager([Quantize(group=8, method="mse")], check=False).run(module)[0]
    assert torch.equal(after.params["0.q"].value(), searched(weight))


@pytest.mark.parametrize(
    ("passes", "scaled"), [(FOUR, False), ([*FOUR, CACHES], True)], ids=["codes, straight", "caches, scaled"]
)
def test_what_is_computed_again_has_the_same_bits(passes: list[Pass], scaled: bool) -> None:
    module, made = decoder(), []
    for recompute in (True, False):
        learned = find_rotations(module, batches(), passes, options(recompute=recompute, scaled=scaled))
        made.append([rotation.matrix for rotation in learned.rotations])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


@pytest.mark.full
def test_learning_loses_less_than_where_it_began() -> None:
    module, batch = decoder(), next(batches(padded=False))
    losses: list[float] = []
    find_rotations(
        module,
        itertools.repeat(batch),
        [Quantize(group="row"), QuantizeActivations(bits=4)],
        options(steps=30, momentum=0.8, distillation=1.0, kind="random", recompute=False),
        progress=lambda step, steps, loss: losses.append(loss),
    )
    # Every step rounds everything anew, so single losses jump.
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_matrices_are_orthogonal_and_the_function_stays() -> None:
    module = decoder()
    learned = find_rotations(module, batches(), FOUR, options())
    starts = drawn(rotatable(module, "all"), "hadamard", 0)
    for start, rotation in zip(starts, learned.rotations, strict=True):
        identity = torch.eye(len(rotation.matrix), dtype=torch.float64)
        assert float((rotation.matrix.T @ rotation.matrix - identity).abs().max()) < 1e-12
        assert float((rotation.matrix - start.matrix).abs().max()) > 1e-3
    result, other = learned.applied(module), RotationFusion().apply(module, Context())
    assert (result.details, result.refusals, result.matches) == (other.details, other.refusals, other.matches)
    assert not Checker(None, 0).check(module, result.module, Exact(), result.correspondence).failures
    assert not same(result.module, module)


class Killed(Exception):
    """Stands for the end of the process."""


def dying(count: int, error: BaseException) -> Iterator[dict[str, torch.Tensor]]:
    yield from itertools.islice(batches(), count)
    raise error


@pytest.mark.parametrize(
    ("momentum", "error"),
    [(0.9, Killed()), pytest.param(0.0, KeyboardInterrupt(), marks=pytest.mark.full)],
    ids=["killed", "interrupted"],
)
def test_a_cut_run_that_goes_on_is_the_whole_one(momentum: float, error: BaseException, tmp_path: Path) -> None:
    module, path = decoder(), tmp_path / "new" / "run.ckpt"
    whole = find_rotations(module, batches(), FOUR, options(momentum=momentum)).applied(module).module
    with pytest.raises(type(error)):
        find_rotations(module, dying(3, error), FOUR, options(momentum=momentum), checkpoint=path)
    steps: list[int] = []
    rest = find_rotations(
        module,
        batches(),
        FOUR,
        options(momentum=momentum, recompute=False, checkpoint_every=1),
        checkpoint=path,
        progress=lambda step, steps_, loss: steps.append(step),
    )
    assert steps[0] == (4 if isinstance(error, KeyboardInterrupt) else 3)
    assert same(rest.applied(module).module, whole)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"module": decoder(seed=1)}, "other weights"),
        ({"passes": [FOUR[0], QuantizeActivations(bits=3)]}, "other passes"),
        ({"options": options(kind="random")}, "other options"),
        ({"loss": lambda outputs, batch: outputs["logits"].square().mean()}, "other loss"),
        ({"data": batches(seed=5)}, "other batches"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_run_is_refused(other: dict[str, Any], what: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"module": decoder(), "data": batches(), "passes": FOUR, "options": options()}
    find_rotations(**given, checkpoint=tmp_path / "run.ckpt")
    with pytest.raises(InputError, match=what):
        find_rotations(**{**given, **other}, checkpoint=tmp_path / "run.ckpt")


def test_what_cannot_be_learned_is_refused() -> None:
    module = decoder()
    encoded = PassManager([Quantize(group=8)], check=False).run(module)[0]
    with pytest.raises(
        InputError, match="is stored as int4g8sf16 already; learn rotations before weights are quantised"
    ):
        find_rotations(encoded, batches(), FOUR, options())
    with pytest.raises(
        InputError, match=r"has no space to rotate \(option 'spaces' is 'normed'\): the space of 32 indices"
    ):
        find_rotations(tiny_decoder(**WIDE), batches(), FOUR, options(spaces="normed"))
    for passes in ([], [Quantize(group=8, method="gptq")]):
        with pytest.raises(InputError, match="nothing is rounded by the passes that are given"):
            find_rotations(module, batches(), passes, options())
    with pytest.raises(InputError, match="what pass 'dead-code' will do to the network is not known"):
        find_rotations(module, batches(), [*FOUR, DeadCode()], options())
    with pytest.raises(
        InputError, match="the option 'average_bits' of pass 'quantize' chooses formats on calibration data"
    ):
        find_rotations(module, batches(), [Quantize(average_bits=4.0)], options())
    with pytest.raises(InputError, match="the data ended after 3 batches, but 6 steps need as many"):
        find_rotations(module, itertools.islice(batches(), 3), FOUR, options())
    with pytest.raises(InputError, match="the model has no function 'forward' to learn on; it has other"):
        find_rotations(Module({"other": module.functions["forward"]}, module.params), batches(), FOUR, options())
    with pytest.raises(InputError, match="learning rotations has no option 'rate'"):
        RotationOptions(steps=1, rate=1.0)
    with pytest.raises(InputError, match=r"option 'momentum' of learning rotations is 1\.0"):
        RotationOptions(steps=1, momentum=1.0)
    spoilt = module.with_params([dense_param("0.q", torch.full((32, 32), torch.nan))])
    with pytest.raises(InputError, match=r"parameter '0\.q' holds NaN or infinity and cannot be rotated"):
        find_rotations(spoilt, batches(), FOUR, options())


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    def spoilt(outputs: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        # Finite, with an infinite slope at zero.
        return (outputs["logits"] * 0).abs().sum().sqrt()

    with pytest.raises(InputError, match="the gradient is not finite in step 1 of 6"):
        find_rotations(decoder(), batches(), FOUR, options(), loss=spoilt)


@pytest.mark.parametrize(("which", "count"), [("normed", 1), ("free", 2), ("all", 3)])
def test_spaces_are_those_that_were_asked_for(which: str, count: int) -> None:
    learned = find_rotations(decoder(), batches(), FOUR, options(steps=1, spaces=which))
    assert len(learned.rotations) == count
