"""The one root of planish's errors, so that a caller can catch what planish refuses and nothing else."""

from __future__ import annotations


class PlanishError(Exception):
    """Something planish refuses, in one sentence: what, where, why, and what to do."""


class IRError(PlanishError):
    """A module, function, type or text that is not well formed."""


class UnsupportedError(PlanishError):
    """A program that cannot be represented or derived; lists everything that stands in the way."""


class InputError(PlanishError):
    """Bad input at the border: a file, a recipe, an option, a tensor."""
