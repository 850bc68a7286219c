"""Hypothesis as the source of choices from which operations draw legal instances of themselves."""

from __future__ import annotations

from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class HypothesisChooser:
    """The `Chooser` of the operation record, drawing from Hypothesis, so that failures shrink.

    Args:
        draw: the function that a composite strategy is given.
    """

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        value: int = self.draw(st.integers(low, high))
        return value

    def choice(self, options: list[T]) -> T:
        value: T = self.draw(st.sampled_from(options))
        return value

    def boolean(self) -> bool:
        value: bool = self.draw(st.booleans())
        return value
