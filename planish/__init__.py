"""planish: compress a PyTorch model, prove what each rewrite kept, compile it.

    model = planish.trace("path/to/hf-folder")             # or trace(nn_module, example_inputs)
    small = planish.compress(model, "recipes/w4.yaml")     # a recipe file, or a list of passes
    artifact = planish.build(small, target="host")
    artifact.save("out")
    program = planish.load("out")
    print(program.generate("def fib(n):", max_new_tokens=64))
    planish.verify(model, small)

Everything here is loaded when it is first used: `import planish` alone costs nothing.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.building import build as build
    from planish.building import load as load
    from planish.building import prepare as prepare
    from planish.compression import compress as compress
    from planish.exporting import export as export
    from planish.model import Model as Model
    from planish.rotations import learn_rotations as learn_rotations
    from planish.tracing import trace as trace
    from planish.training import train as train
    from planish.verification import verify as verify

__version__ = version("planish")

_NAMES = {
    "Model": "planish.model",
    "build": "planish.building",
    "compress": "planish.compression",
    "export": "planish.exporting",
    "learn_rotations": "planish.rotations",
    "load": "planish.building",
    "prepare": "planish.building",
    "trace": "planish.tracing",
    "train": "planish.training",
    "verify": "planish.verification",
}

__all__ = [
    "Model", "__version__", "build", "compress", "export", "learn_rotations", "load", "prepare", "trace", "train", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'planish' has no attribute {name!r}")
