"""GPTQ over a network: what each weight sees, that runs can be cut and go on, and what is reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.ir import Dense, GroupedInt, InputError, Interpreter, Module, ParamRef, dense_param
from planish.ir.ops import Linear, QuantizedLinear
from planish.passes.calibration import Calibration
from planish.passes.calibration.lockstep import Lockstep
from planish.passes.gptq import curvature
from planish.passes.network_gptq import Aim
from planish.passes.pass_base import Context
from planish.passes.quantize import Quantize
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.roles import weight_of
from planish.passes.selection import Rule
from planish.testing.tiny_decoder import tiny_decoder

WIDE: dict[str, Any] = {"hidden": 32, "size": 8, "inner": 48}
TIED = Rule(match="embedding", format=8, method="rtn")


def batches(count: int = 5, length: int = 9, seed: int = 0) -> tuple[dict[str, torch.Tensor], ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(
        {
            "input_ids": torch.randint(0, 11, (2 + n % 2, length + n), generator=g),
            "attention_mask": torch.ones(2 + n % 2, length + n, dtype=torch.bool),
        }
        for n in range(count)
    )


def context(**options: Any) -> Context:
    return Context(calibration=Calibration(batches(), **options))


def quantizer(**options: Any) -> Quantize:
    return Quantize(**{"format": 3, "group": 16, "method": "gptq", "rules": (TIED,), "scales": "float32", **options})


def storages(module: Module) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: dict(p.storage())
        for name, p in module.params.items()
        if not isinstance(p.encoding, Dense) and name != "embedding"
    }


def same(one: Module, other: Module) -> bool:
    a, b = storages(one), storages(other)
    return a.keys() == b.keys() and all(torch.equal(a[n][field], b[n][field]) for n in a for field in a[n])


def inputs_of_weights(module: Module) -> dict[str, torch.Tensor]:
    """What each linear map's weight multiplies, over all batches, in float64."""
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in batches():
        values: dict[Any, torch.Tensor] = {}

        def observe(node: Any, results: Any, values: dict[Any, torch.Tensor] = values) -> None:
            weight = weight_of(node)
            if weight is not None and isinstance(node.op, Linear):
                seen.setdefault(weight.name, []).append(values[node.inputs[0]].flatten(0, -2).double())
            if weight is not None and isinstance(node.op, QuantizedLinear):
                x = values[node.inputs[0]] * values[node.inputs[1]]
                seen.setdefault(weight.name, []).append(x.flatten(0, -2).double())
            values.update(zip(node.outputs, results))

        Interpreter(module, observe=observe).run("forward", batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("activations", [False, True])
def test_each_weight_is_rounded_on_the_inputs_that_it_will_have(activations: bool) -> None:
    """The error that the pass reports is that of the final network's own weights on the final network's own inputs."""
    module = tiny_decoder(**WIDE)
    if activations:
        module = Quantize(format=8, group=16, rules=(TIED,)).apply(module, Context()).module
        with_codes = QuantizeActivations().apply(module, Context()).module
        dense = list(tiny_decoder(**WIDE).params.values())
        module = with_codes.with_params(dense)
    result = quantizer(follow=False).apply(module, context())
    inputs, losses = inputs_of_weights(result.module), []
    for name in storages(result.module):
        x = inputs[name]
        error = module.params[name].value().double() - result.module.params[name].value().double()
        damping = 0.01 * x.square().mean()
        losses.append(float((x @ error.t()).square().mean() + damping * error.square().sum(1).mean()))
    # The pass sums in float32 over a few dozen rows.
    assert result.details["mean squared error"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_aim_is_the_best_approximation_of_the_original() -> None:
    """Least squares over z of what the original gives on x, held near the weight by the damping."""
    g = torch.Generator().manual_seed(2)
    z = torch.randn(200, 24, generator=g, dtype=torch.float64) @ torch.randn(24, 24, generator=g, dtype=torch.float64)
    x = z + 0.3 * torch.randn(200, 24, generator=g, dtype=torch.float64)
    weight = torch.randn(7, 24, generator=g, dtype=torch.float64)
    hessian = z.t() @ z / 200
    damping = float(0.1 * hessian.diagonal().mean())
    aim = Aim(((x - z).t() @ z / 200).float(), curvature(hessian, 0.1, "w"))
    rows = torch.cat([z / 200**0.5, damping**0.5 * torch.eye(24, dtype=torch.float64)])
    wanted = torch.cat([x @ weight.t() / 200**0.5, damping**0.5 * weight.t()])
    best = torch.linalg.lstsq(rows, wanted).solution.t()
    # Three products in float32 of at most 24 terms, through an inverse whose condition is at most trace / d.
    condition = float(hessian.diagonal().sum()) / damping
    assert float((aim(weight) - best).abs().max()) <= 3 * 24 * 2**-24 * condition * float(weight.abs().max())


@pytest.mark.full
def test_following_the_original_is_nearer_to_it() -> None:
    gains = []
    for seed in range(3):
        module = tiny_decoder(**WIDE, seed=seed)
        exact = [Interpreter(module).run("forward", b)[0] for b in batches()]
        errors = []
        for follow in (True, False):
            small = quantizer(follow=follow, format=2).apply(module, context()).module
            results = [Interpreter(small).run("forward", b)[0] for b in batches()]
            errors.append(sum(float((a - b).square().sum()) for a, b in zip(exact, results)))
        gains.append(errors[0] / errors[1])
    assert sorted(gains)[1] < 1, gains


def test_results_do_not_depend_on_where_they_wait(tmp_path: Path) -> None:
    module = tiny_decoder(**WIDE)
    one = quantizer().apply(module, context()).module
    assert same(one, quantizer().apply(module, context(memory=0)).module)
    assert same(one, quantizer().apply(module, context(memory=1 << 13, workspace=tmp_path / "w")).module)
    assert not [p for p in (tmp_path / "w").iterdir() if p.is_dir()], "what waited on disk is gone"


class _Stop(Exception):
    pass


@pytest.mark.full
@pytest.mark.parametrize("after", [1, 4, 9, 13])
def test_a_run_that_was_cut_goes_on(tmp_path: Path, after: int) -> None:
    module = tiny_decoder(**WIDE)
    whole = quantizer().apply(module, context()).module
    calls = 0

    def stop(fraction: float, phrase: str) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise _Stop

    kept = Calibration(batches(), workspace=tmp_path)
    with pytest.raises(_Stop):
        quantizer().apply(module, Context(calibration=kept, progress=stop))
    again = quantizer().apply(module, Context(calibration=kept))
    assert again.details["resumed"] == after and same(whole, again.module)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_network_gptq as t
from planish.passes.calibration import Calibration
from planish.passes.calibration.lockstep import Lockstep
from planish.passes.gptq import curvature
from planish.passes.network_gptq import Aim
from planish.passes.pass_base import Context
def slow(fraction, phrase):
    print(phrase, flush=True)
    time.sleep(0.05)
calibration = Calibration(t.batches(), memory=0, workspace=Path(sys.argv[2]))
t.quantizer().apply(t.tiny_decoder(**t.WIDE), Context(calibration=calibration, progress=slow))
"""


@pytest.mark.full
@pytest.mark.parametrize("after", [2, 7])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, after: int) -> None:
    command = [sys.executable, "-P", "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(after):
            process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    module = tiny_decoder(**WIDE)
    again = quantizer().apply(module, context(workspace=tmp_path))
    assert after <= int(again.details["resumed"]) < 14
    assert same(again.module, quantizer().apply(module, context()).module)


def test_a_run_that_goes_on_decodes_no_more_weights_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is passed stage by stage: memory is that of a run that was not cut."""
    module, spans, visit = tiny_decoder(**WIDE), [], Lockstep.visit

    def watched(self: Lockstep, position: int) -> Any:
        nodes = self.function.nodes[self.position : position]
        spans.append(len({i.name for n in nodes for i in n.inputs if isinstance(i, ParamRef)}))
        return visit(self, position)

    monkeypatch.setattr(Lockstep, "visit", watched)
    quantizer().apply(module, context(workspace=tmp_path))
    whole, finished = max(spans), sorted(tmp_path.glob("*.safetensors"), key=lambda f: f.stat().st_mtime_ns)
    finished[-1].unlink()
    spans.clear()
    again = quantizer().apply(module, context(workspace=tmp_path))
    assert int(again.details["resumed"]) == len(finished) - 1
    assert 0 < max(spans) <= whole


def test_a_workspace_of_something_else_is_refused(tmp_path: Path) -> None:
    module = tiny_decoder(**WIDE)
    quantizer().apply(module, context(workspace=tmp_path))
    other = Context(calibration=Calibration(batches(seed=1), workspace=tmp_path))
    for step, subject, given, what in (
        (quantizer(format=4), module, context(workspace=tmp_path), "another options"),
        (quantizer(), tiny_decoder(**WIDE, seed=1), context(workspace=tmp_path), "another model"),
        (quantizer(), module, other, "another calibration data"),
    ):
        with pytest.raises(InputError, match=rf"belongs to a run with {what}; choose another folder"):
            step.apply(subject, given)
    (tmp_path / "run.json").write_text("no json")
    with pytest.raises(InputError, match=r"the workspace .* cannot be used"):
        quantizer().apply(module, context(workspace=tmp_path))


def test_what_calibration_does_not_see_is_said() -> None:
    module = tiny_decoder(**WIDE)
    gain = module.params["0.norm.mlp"].value().clone()
    gain[[3, 5]] = 0
    result = quantizer(rules=()).apply(module.with_params([dense_param("0.norm.mlp", gain)]), context())
    assert result.refusals == (
        "embedding is read by no linear map first: rounded without calibration, as 'mse' does",
        "2 of 32 input features of 0.gate, 0.up are zero in all calibration tokens; their weights are rounded to nearest",
    )
    assert isinstance(result.module.params["embedding"].encoding, GroupedInt)


def test_data_that_overflow_are_refused() -> None:
    module = tiny_decoder(**WIDE)
    gain = torch.full((32,), 1e30)
    with pytest.raises(InputError, match=r"the Hessian of '0\.q' and '0\.k' and '0\.v' holds NaN or infinity"):
        quantizer().apply(module.with_params([dense_param("0.norm.attention", gain)]), context())


def test_calibration_without_data_is_refused() -> None:
    with pytest.raises(InputError, match="the calibration data hold no batch"):
        Calibration(())
    with pytest.raises(InputError, match="calibration cannot keep -1 bytes"):
        Calibration(batches(), memory=-1)
