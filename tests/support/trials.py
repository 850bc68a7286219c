"""Functions of a module called with parameters on which elements of groups have acted: what changes them, and what does not.

Elements of declared groups must leave every result alone (`violations`); what is not declared must not (`slack`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch

from planish.ir import Interpreter, Module
from planish.ir.spaces.action import act
from planish.ir.spaces.analysis import Space, Spaces
from planish.ir.spaces.laws import Family
from planish.ir.spaces.solutions import solutions
from planish.ir.spaces.terms import atoms
from planish.testing.acting import draw
from planish.testing.agreement import float_fault

Values = Mapping[str, torch.Tensor]
"""Parameters by name."""


def parameters(space: Space) -> list[str]:
    """The names of the parameters that have a space, each once."""
    return list(dict.fromkeys(name for name, _ in space.parameters))


class Trial:
    """A module whose functions are called, on the same inputs, with parameters on which elements of groups have acted.

    Args:
        module: with float64 parameters.
        spaces: of the module.
        inputs: of every function, by name.
        values: of the parameters.
        exact: whether results must be the same bits; otherwise they may differ by what float32 rounds away, four times.
    """

    def __init__(
        self,
        module: Module,
        spaces: Spaces,
        inputs: Mapping[str, Mapping[str, torch.Tensor]],
        values: Values,
        exact: bool = False,
    ) -> None:
        self.module, self.spaces, self.inputs, self.values, self.exact = module, spaces, inputs, values, exact

    @cached_property
    def tried(self) -> list[Space]:
        """The spaces that parameters have, but for those of one index."""
        return [space for space in self.spaces.spaces if space.size != 1 and space.parameters]

    def turned(self, values: Values, space: Space, matrix: torch.Tensor) -> Values:
        """With a matrix [n, n] acting on every parameter that has the space, on the parameter's side."""
        return {
            **values,
            **{n: self._act(values, space, n, matrix, space.sides.get(("param", n), 1)) for n in parameters(space)},
        }

    def stretched(self, values: Values, space: Space, powers: Mapping[str, int], base: torch.Tensor) -> Values:
        """With the indices of each named parameter multiplied by numbers [n] to a power."""
        return {**values, **{n: self._act(values, space, n, base**power) for n, power in powers.items()}}

    def _act(self, values: Values, space: Space, name: str, matrix: torch.Tensor, side: int = 1) -> torch.Tensor:
        terms = [self.spaces.term(("param", name), axis) for axis in range(values[name].ndim)]
        return act(values[name], terms, space.atom, matrix, side < 0)

    def change(self, values: Values) -> str:
        """What results do that they must not, if the functions are the same; else ""."""
        for got, (plain, exact) in zip(self.run(values, torch.float64), self._expected, strict=True):
            if self.exact and not torch.equal(got, exact):
                return "has other bits"
            fault = "" if self.exact else float_fault(got, plain, exact)
            if fault:
                return fault
        return ""

    @property
    def largest(self) -> float:
        """The largest number that the functions compute."""
        seen = list[torch.Tensor]()
        interpreter = _Replaced(self.module, self.values, torch.float64)
        interpreter.observe = lambda node, results: seen.extend(results)
        for name, inputs in self.inputs.items():
            interpreter.run(name, inputs)
        return max(float(x.abs().max()) for x in seen if x.is_floating_point())

    @cached_property
    def _expected(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(*(self.run(self.values, dtype) for dtype in (torch.float32, torch.float64))))

    def run(self, values: Values, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The results of all functions, computed in a dtype."""
        interpreter = _Replaced(self.module, values, dtype)
        for name, inputs in self.inputs.items():
            yield from interpreter.run(name, inputs).outputs.values()


class _Replaced(Interpreter):
    """With other parameters: no module is built for each of them."""

    def __init__(self, module: Module, values: Values, dtype: torch.dtype) -> None:
        super().__init__(module, compute=dtype)
        self._values = values

    def param(self, name: str) -> torch.Tensor:
        return self._values[name].to(self._dtype(self._values[name].dtype))


def violations(trial: Trial, generator: torch.Generator) -> Iterator[tuple[Space, str]]:
    """Spaces of which a drawn element changes a function, with its kind: "matrix", "scale" or "sign".

    The elements of all spaces act together first, and one by one only where that changes something.
    """
    # Signs are so few that one draw may be no other than all alike.
    for kind in ("matrix", "scale", "sign", "sign", "sign"):
        together, elements = trial.values, []
        for space in trial.tried:
            seed = int(torch.randint(1 << 30, (), generator=generator))
            elements.append((space, seed))
            together = _element(trial, together, space, kind, seed)
        if trial.change(together):
            alone = [s for s, seed in elements if trial.change(_element(trial, trial.values, s, kind, seed))]
            yield from ((space, kind) for space in alone or trial.tried)


def _element(trial: Trial, values: Values, space: Space, kind: str, seed: int) -> Values:
    """A drawn element of a declared group acts."""
    generator, count = torch.Generator().manual_seed(seed), int(space.size)  # type: ignore[call-overload]
    if kind == "matrix":
        family = min(space.family, Family.PERMUTATION) if trial.exact else space.family
        return trial.turned(values, space, draw(family, count, generator))
    for solution in space.scalings() if kind == "scale" else space.signings():
        powers = {n: power for n in parameters(space) if (power := solution.get(("param", n), 0))}
        values = trial.stretched(values, space, powers, _numbers(kind, trial.exact, count, generator))
    return values


def _numbers(kind: str, exact: bool, count: int, generator: torch.Generator) -> torch.Tensor:
    """Signs or positive scales [n]."""
    if kind == "sign":
        return torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
    if exact:
        return 2.0 ** torch.randint(-3, 4, (count,), generator=generator)
    return 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)


def larger(space: Space) -> Family | None:
    """The next family that has more matrices of the space's size than its own."""
    families = [f for f in Family if f > space.family and not (f == Family.CENTRED and space.size == 2)]
    return families[0] if families else None


def unsigned(space: Space, generator: torch.Generator, few: int) -> Iterator[list[str]]:
    """Parameters to which together no declared sign of a space is given: all such sets where they are few, else each alone,
    all together, and some drawn ones."""
    names = parameters(space)
    checks = list(solutions(of_parameters(space, "sign"), names, 2))
    masks = [[number >> place & 1 for place in range(len(names))] for number in range(1, 1 << min(len(names), few))]
    if len(names) > few:
        masks = [*torch.eye(len(names), dtype=torch.int64).tolist(), [1] * len(names)]
        masks += torch.randint(0, 2, (4, len(names)), generator=generator).tolist()
    for mask in masks:
        together = [name for name, of in zip(names, mask) if of]
        if any(sum(check.get(name, 0) for name in together) % 2 for check in checks):
            yield together


def of_parameters(space: Space, kind: str) -> list[dict[str, int]]:
    """What the declared scales (or signs) are on the parameters alone."""
    solved = space.scalings() if kind == "scale" else space.signings()
    return [{n: solution.get(("param", n), 0) for n in parameters(space)} for solution in solved]


def declared_scales(space: Space) -> int:
    """How many independent scales a space declares that parameters can tell apart."""
    names = parameters(space)
    return len(names) - len(list(solutions(of_parameters(space, "scale"), names)))


def free_scales(trials: Sequence[Trial], space: Space, generator: torch.Generator) -> int:
    """How many independent scales leave the functions alone: those that no derivative of a result sees in any trial.

    A column for each parameter: what results do when its power grows; a row for each index and each drawn sum of results. A
    scale is a law only where it is one at every index, so that what is so for the numbers of one index alone drops out.
    """
    names, count = parameters(space), int(space.size)  # type: ignore[call-overload]
    rows = []
    for trial in trials:
        powers = torch.zeros(len(names), count, dtype=torch.float64, requires_grad=True)
        values = trial.values
        for name, of in zip(names, powers):
            values = trial.stretched(values, space, {name: 1}, of.exp())
        results = torch.cat([result.flatten() for result in trial.run(values, torch.float64)])
        for _ in range(1 + 2 * len(names) // count):
            weights = torch.randn(results.shape, generator=generator, dtype=torch.float64)
            (row,) = torch.autograd.grad((weights * results).sum(), powers, retain_graph=True)
            rows.append(row.T / row.norm().clamp(min=torch.finfo(row.dtype).tiny))
    table = torch.cat(rows)
    # A parameter is seen or not, however little it does.
    table = table / table.norm(dim=0).clamp(min=1e-9)
    return len(names) - int((torch.linalg.svdvals(table) > 1e-7).sum())


def has_twice(spaces: Spaces, space: Space) -> bool:
    """Whether a tensor has the indices of a space in two places."""
    tensors = {axis.tensor for axis in space.axes}
    return any(sum(a is space.atom for term in spaces.terms(t) for a in atoms(term)) > 1 for t in tensors)


def slack(trials: Sequence[Trial], generator: torch.Generator, few: int = 3) -> Iterator[tuple[Space, str, object]]:
    """What a space does not declare and what changes nothing in any trial, all of one module with other numbers: spaces
    with a kind ("matrix" and the family, "scale" and how many, "sign" and its parameters).

    Scales and signs are not tried where the analysis has none to tell: of what is fixed, and where a tensor has the indices
    twice, for it has one exponent.

    Args:
        few: of how many parameters all sets are given signs.
    """

    def still(space: Space, what: Family | list[str]) -> bool:
        count = int(space.size)  # type: ignore[call-overload]
        # Where a rectifier is shut, a sign may do nothing: that is so for some numbers and some signs, never for all.
        for trial in [*trials] * 4:
            if isinstance(what, list):
                # Not all alike: a sign of a whole tensor is no sign of indices.
                signs = _numbers("sign", False, count, generator)
                if abs(float(signs.sum())) == count:
                    signs[int(torch.randint(count, (), generator=generator))] *= -1
                values = trial.stretched(trial.values, space, dict.fromkeys(what, 1), signs)
            else:
                matrix = draw(what, count, generator)
                while torch.equal(matrix, torch.eye(count, dtype=torch.float64)):
                    matrix = draw(what, count, generator)
                values = trial.turned(trial.values, space, matrix)
            if trial.change(values):
                return False
        return True

    for space in trials[0].tried:
        family = larger(space)
        if family is not None and still(space, family):
            yield space, "matrix", family
        if space.family == Family.FIXED or has_twice(trials[0].spaces, space):
            continue
        free = free_scales(trials[:2], space, generator)
        if free > declared_scales(space):
            yield space, "scale", free
        for together in unsigned(space, generator, few):
            if still(space, together):
                yield space, "sign", together
