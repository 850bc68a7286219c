"""What is dead in a network, found and taken out."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from planish.ir.module import Module
from planish.ir.spaces.analysis import Spaces, find_spaces
from planish.ir.spaces.laws import Family
from planish.ir.spaces.terms import Atom
from planish.ir.spaces.zeros import Zeros
from planish.passes.cutting import cut_alone
from planish.passes.dead_code import DeadCode
from planish.passes.dropping import drop, keeps
from planish.passes.pass_base import Context, Pass, PassResult
from planish.passes.sequel import Sequel


class Compact(Pass):
    """Takes out of every space the indices that change nothing: those at which each operation that sums over them, or takes
    their length, meets a zero.

    before: relu(x @ up[96, 64]) @ down[64, 96], with 20 rows of up that are zero, or columns of down
    after:  relu(x @ up[76, 64]) @ down[64, 76]

    Zeros are followed from parameters through operations whose laws keep them (relu(0) = 0, silu(0) * x = 0, a bias does
    not). What is taken out makes other things dead, so it is repeated until nothing is. Where all indices of a space are dead
    one stays. Infinities and NaN at run time are not reckoned with: a zero times one of them counts as zero.

    A row or a column may be zero in one linear map and not in what shares its indices, such as the residual stream. Where the
    part of such rows, or columns, is at least `alone`, the map is cut by itself, and reads a gather or writes a scatter.

    Attributes:
        align: as many indices stay of a space as make a multiple of it; zeros fill up.
        alone: the least part of dead rows or columns for which a map is cut by itself; 1 for never.
    """

    name: ClassVar[str] = "compact"
    align: int = Field(default=1, ge=1)
    alone: float = Field(default=1.0, gt=0, le=1)

    def apply(self, module: Module, context: Context) -> PassResult:
        steps, cut, gone = Sequel(module), 0, 0
        while True:
            spaces = find_spaces(steps.module)
            staying, refusals = self._staying(steps.module, spaces)
            if not staying:
                break
            cut, gone = cut + len(staying), gone + sum(int((~kept).sum()) for kept in staying.values())
            dropped = drop(steps.module, spaces, staying)
            steps.then(PassResult(dropped.module, len(staying), dropped.correspondence))
        alone = 0
        if self.alone < 1:
            alone = steps.then(cut_alone(steps.module, self.alone)).matches
        if alone:
            steps.then(DeadCode().apply(steps.module, context))
        if not cut + alone:
            return PassResult(module, 0, refusals=refusals)
        details = {"spaces cut": cut, "indices dropped": gone, "maps cut alone": alone}
        return PassResult(steps.module, cut + alone, steps.correspondence, refusals, details)

    def _staying(self, module: Module, spaces: Spaces) -> tuple[dict[Atom, torch.Tensor], tuple[str, ...]]:
        """What stays of each space that has something dead, and sentences about spaces that keep it."""
        zeros, staying, refusals = Zeros(module, spaces), dict[Atom, torch.Tensor](), list[str]()
        for space in spaces.spaces:
            if not isinstance(space.size, int) or space.size < 2 or not space.rulings:
                continue
            dead = zeros.dead(space)
            alive = int((~dead).sum())
            stays = min(space.size, -(-max(1, alive) // self.align) * self.align)
            dead[dead.nonzero().flatten()[: stays - alive]] = False
            reason = keeps(module, space) if bool(dead.any()) else ""
            if reason and space.family > Family.FIXED and space.parameters:
                name = space.parameters[0][0]
                refusals.append(f"{int(dead.sum())} dead indices of the {space.size} of {name} stay: {reason}")
            elif bool(dead.any()) and not reason:
                staying[space.atom] = ~dead
        return staying, tuple(dict.fromkeys(refusals))
