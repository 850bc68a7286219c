"""GPTQ over a network: each weight is rounded on what its inputs are once all the weights in front of it are rounded.

What the weight is to give is what the original gave on its own inputs. With x the original's inputs and z those behind
rounded weights, W x is best approximated by V z for V = W + W D (H + d I)^-1, D = mean of (x - z) z^T, H = mean of z z^T;
GPTQ then rounds V instead of W. Source: GPTAQ (Li et al., 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from planish.ir.encodings import Encoding
from planish.ir.module import Function, Module, Node, Operand, Value
from planish.ir.ops import Embedding, QuantizedLinear
from planish.ir.params import InMemory, Param
from planish.passes.calibration import Calibration, Lockstep, Workspace
from planish.passes.calibration.lockstep import Read
from planish.passes.calibration.shelf import Shelf
from planish.passes.gptq import Curvature, curvature, gptq
from planish.passes.roles import weight_of
from planish.passes.rounding_grids import grid_of

FUNCTION = "forward"


@dataclass
class Outcome:
    """What was done.

    Attributes:
        params: the rounded parameters.
        losses: by parameter, the mean squared error of its outputs.
        notes: sentences about what calibration could not see.
        resumed: how many parameters an earlier run had finished.
    """

    params: list[Param] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    resumed: int = 0


@dataclass(frozen=True)
class Stage:
    """Linear maps of one input, known once the nodes before `position` are computed."""

    position: int
    node: Node
    names: tuple[str, ...]


def stages(function: Function, names: Mapping[str, object]) -> tuple[list[Stage], list[str]]:
    """The stages in which the named weights are rounded, and the weights among them that no linear map of the function reads
    before an embedding does: their input is not seen."""
    groups: dict[tuple[Operand | None, ...], Stage] = {}
    placed: set[str] = set()
    for position, node in enumerate(function.nodes):
        weight = weight_of(node)
        if weight is None or weight.name not in names or weight.name in placed:
            continue
        if isinstance(node.op, Embedding):
            placed.add(weight.name)
            continue
        placed.add(weight.name)
        key = _input_of(node)
        known = groups.get(key, Stage(position, node, ()))
        groups[key] = Stage(known.position, known.node, (*known.names, weight.name))
    found = sorted(groups.values(), key=lambda stage: stage.position)
    seen = {name for stage in found for name in stage.names}
    return found, [name for name in names if name not in seen]


def round_network(
    module: Module,
    encodings: Mapping[str, Encoding],
    calibration: Calibration,
    *,
    original: Module | None,
    damping: float,
    refine: int,
    made_of: Callable[[], Mapping[str, str]],
    progress: Callable[[float, str], None],
) -> Outcome:
    """Round the weights of the stages of `forward`, from the first to the last.

    Args:
        module: weights that are rounded without calibration are rounded already.
        encodings: by name, for weights that a stage reads; each has a grid (`rounding_grids.grid_of`).
        calibration: the data; its workspace keeps finished weights.
        original: the network whose results are to be approximated; None for what each weight gives on the new inputs.
        damping: see `gptq.curvature`.
        refine: see `gptq.gptq`.
        made_of: fingerprints of the model and the options, for the workspace.
        progress: called with a fraction and a phrase after each weight.
    """
    outcome = Outcome()
    workspace = None
    if calibration.workspace is not None:
        workspace = Workspace(calibration.workspace, {**made_of(), "calibration data": calibration.fingerprint})
    found, _ = stages(module.functions[FUNCTION], encodings)
    total = sum(module.params[n].elements for stage in found for n in stage.names)
    done = 0
    shelf: Shelf[Value]
    other: Shelf[Value]
    memory = calibration.memory if original is None else calibration.memory // 2
    with Shelf(memory, calibration.workspace) as shelf, Shelf(memory, calibration.workspace) as other:
        lockstep = Lockstep(module, FUNCTION, calibration.batches, shelf)
        reference = None if original is None else Lockstep(original, FUNCTION, calibration.batches, other)
        passed: list[int] = []
        for stage in found:
            params = [Param(n, (p := module.params[n]).type, encodings[n], p.source) for n in stage.names]
            kept = [None if workspace is None else workspace.load(p) for p in params]
            seen = None
            if all(kept):
                passed.append(stage.position)
            else:
                # Stage by stage here too: weights in between are decoded together.
                for position in passed:
                    for network in (lockstep, *([] if reference is None else [reference])):
                        network.run_to(position)
                passed.clear()
                seen = _observe(lockstep, reference, stage, damping)
                if seen.dead:
                    outcome.notes.append(
                        f"{seen.dead} of {len(seen.curvature.hessian)} input features of {', '.join(stage.names)} are zero "
                        f"in all calibration tokens; their weights are rounded to nearest"
                    )
            for param, finished in zip(params, kept):
                if finished is None:
                    assert seen is not None
                    weight = module.params[param.name].value()
                    grid = grid_of(param.encoding, weight)
                    assert grid is not None
                    rounding = gptq(weight, seen.curvature, grid, refine=refine, aim=seen.aim)
                    storage, loss = rounding.storage, rounding.loss
                    in_memory = Param(param.name, param.type, param.encoding, InMemory(storage))
                    result = in_memory if workspace is None else workspace.save(param, storage, loss)
                else:
                    (result, loss), outcome.resumed = finished, outcome.resumed + 1
                outcome.params.append(result)
                outcome.losses[param.name] = loss
                done += param.elements
                progress(done / total, f"{param.name}: mean squared error {loss:.3g}")
            lockstep.module = lockstep.module.with_params(outcome.params[-len(params) :])
    return outcome


class Aim:
    """Moves rows w of a weight to w + w D (H + d I)^-1; in float32, of which the rounding that follows leaves a few bits.

    Args:
        drift: D, float32 [in, in].
        curvature: of H + d I.
    """

    def __init__(self, drift: torch.Tensor, curvature: Curvature) -> None:
        self._drift = drift
        self._factor = curvature.factor.to(torch.float32)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = rows.to(torch.float32) @ self._drift @ self._factor.t() @ self._factor
        return rows + moved


@dataclass(frozen=True)
class _Seen:
    """The curvature of a stage's weights, their aim (see `gptq.gptq`), and how many features are silent."""

    curvature: Curvature
    aim: Callable[[torch.Tensor], torch.Tensor] | None
    dead: int


def _observe(lockstep: Lockstep, reference: Lockstep | None, stage: Stage, damping: float) -> _Seen:
    weight = weight_of(stage.node)
    assert weight is not None
    features = int(weight.type.shape[-1])
    hessian = torch.zeros(features, features, dtype=torch.float64)
    drift = None if reference is None else torch.zeros(features, features)
    rows = 0
    originals = (None for _ in lockstep.batches) if reference is None else reference.visit(stage.position)
    for read, original in zip(lockstep.visit(stage.position), originals, strict=True):
        x = _rows(stage.node, read)
        rows += len(x)
        hessian.add_(x.t() @ x)
        if drift is not None and original is not None:
            drift.add_((_rows(stage.node, original) - x).t() @ x)
    hessian /= max(rows, 1)
    dead = int((hessian.diagonal() == 0).sum())
    cost = curvature(hessian, damping, " and ".join(repr(n) for n in stage.names))
    return _Seen(cost, None if drift is None else Aim(drift / max(rows, 1), cost), dead)


def _rows(node: Node, read: Read) -> torch.Tensor:
    """What a linear map multiplies, float32 [rows, in]."""
    x, *scale = (read(o) for o in _input_of(node) if o is not None)
    x = x.to(torch.float32)
    return (x * scale[0] if scale else x).reshape(-1, x.shape[-1])


def _input_of(node: Node) -> tuple[Operand | None, ...]:
    """What a linear map multiplies: its input, or codes and their scales."""
    return node.inputs[:2] if isinstance(node.op, QuantizedLinear) else node.inputs[:1]
