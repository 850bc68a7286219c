"""The one error that a run raises, loaded only when it is raised.

The error's class lives with the IR, whose package brings torch: 150 MB that running an artifact does not need.
"""

from __future__ import annotations


def input_error(sentence: str) -> Exception:
    """An InputError to raise: what, where, why, what to do."""
    from planish.ir.errors import InputError

    return InputError(sentence)
