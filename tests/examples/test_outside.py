"""The package in examples/outside, installed as a user would: each of its four things is found by name and does its work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "examples/outside"

USE = """
import torch, planish
from planish.ir.text import parse_module, print_module

class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(24, 37), torch.nn.Linear(37, 24)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)) ** 2)

torch.manual_seed(0)
mlp, x = Mlp().eval(), torch.randn(5, 24)
model = planish.compress(planish.trace(mlp, (x,)), RECIPE)
(report,) = model.reports[-1:]
assert [p.name for p in report.passes] == ["raise-squared-relu", "dead-code"]
text = print_module(model.module)
assert "squared_relu(" in text and "aten.relu" not in text and "aten.pow" not in text
assert print_module(parse_module(text)) == text
artifact = planish.build(model, "avx2")
assert artifact.manifest["target"]["name"] == "avx2"
assert not any(f.startswith("avx512") for f in artifact.manifest["target"]["features"])
assert any(o["kernel"].startswith("squared_relu[") for o in artifact.report["functions"]["forward"]["steps"])
with torch.no_grad():
    exact, rounded = mlp.double()(x.double()), mlp.float()(x)
got = artifact.load()(x)
assert float((got - exact).abs().max()) <= 4 * float((rounded - exact).abs().max()) + 2**-24
print("used by name")
"""

LAWS = """
from planish.passes.check import Checker, CheckOptions
from planish.passes.contract import Exact
from planish.passes.registry import pass_class, pass_names
from planish.passes.pass_base import Context
from planish.passes.rewrite import rewrite
from planish.ir.ops import op_class
from planish.ir import verify
from planish.testing.rules import SeededChooser, directed

assert "raise-squared-relu" in pass_names()
(rule,) = pass_class("raise-squared-relu")().rules(Context())
fired = 0
for seed in range(20):
    module = directed(SeededChooser(seed), rule)
    done = rewrite(module, module.functions["forward"], [rule])
    after = module.with_function(done.function).with_params(done.params)
    verify(after)
    fired += bool(done.matches)
    outcome = Checker(CheckOptions(probes=1)).check(module, after, Exact(), {"forward": done.correspondence})
    assert all(o.status != "failed" for o in (*outcome.regions, *outcome.whole))
assert fired >= 6, fired
sample = op_class("squared_relu").sample(SeededChooser(1))
assert sample.op.infer(*sample.operands) == sample.operands
print("laws hold")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package installed into a folder of its own, from a copy, so that building leaves nothing in the tree."""
    root = tmp_path_factory.mktemp("outside")
    copy = shutil.copytree(SOURCE, root / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(root / "site"), str(copy)], check=True, capture_output=True)
    return root / "site"


def run(site: Path, code: str) -> str:
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_all_four_are_used_by_name(installed: Path) -> None:
    recipe = f"RECIPE = {str(SOURCE / 'recipe.yaml')!r}\n"
    assert run(installed, recipe + USE).strip().endswith("used by name")


@pytest.mark.full
def test_its_rule_keeps_the_laws(installed: Path) -> None:
    assert run(installed, LAWS).strip().endswith("laws hold")


@pytest.mark.full
def test_the_command_line_knows_it(installed: Path) -> None:
    listed = run(installed, "from planish.cli.app import run; run(['passes', '--json'])")
    assert "raise-squared-relu" in listed
