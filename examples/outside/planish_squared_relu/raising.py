"""pow(relu(x), 2) and relu(x) * relu(x)  -->  squared_relu(x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from planish.ir import TensorType
from planish.ir.op import Chooser
from planish.passes.pass_base import Context
from planish.passes.patterns import OneOf, call
from planish.passes.rewrite import RewritePass, Rule, pattern_rule
from planish_squared_relu.operation import SquaredRelu


def _draw(choose: Chooser) -> Mapping[str, Any]:
    return {"x": TensorType(torch.float32, (choose.integer(1, 4), choose.integer(1, 5)))}


def _squared(x: Any) -> Any:
    positive = call("relu.default", x)
    return OneOf((call("pow.Tensor_Scalar", positive, OneOf((2, 2.0))), call("mul.Tensor", positive, positive)))


SQUARED = pattern_rule("squared relu", _squared, lambda to, match: to.emit(SquaredRelu(), match["x"]), _draw)


class RaiseSquaredRelu(RewritePass):
    """Recognise the squared rectifier, which takes one sweep over memory in place of two."""

    name: ClassVar[str] = "raise-squared-relu"

    def rules(self, context: Context) -> Sequence[Rule]:
        return (SQUARED,)
