"""Evaluation that carries, element by element, a bound on the rounding error made so far.

An operation's own `evaluate` is run while every ATen call inside it is watched: beside each floating tensor a float64
tensor is kept that bounds the distance to what exact arithmetic would have given. So every operation inherits its bound
from its meaning, and nothing about errors is written twice. What has no rule raises `NoBound`, never a guess.

The rules are the usual running error analysis (N. J. Higham, Accuracy and Stability of Numerical Algorithms, chapters 2
to 4): u is the unit roundoff of a dtype and gamma(n) = n u / (1 - n u) bounds the relative error of n roundings in any
order of summation.
"""

from __future__ import annotations

from planish.ir.bounds.evaluate import Bounded, evaluate_bounded, run_bounded
from planish.ir.bounds.mode import NoBound
from planish.ir.bounds.rounding import unit_roundoff

__all__ = ["Bounded", "NoBound", "evaluate_bounded", "run_bounded", "unit_roundoff"]
