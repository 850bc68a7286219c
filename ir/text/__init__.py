"""The text form: printed for people, parsed back to a structurally equal module."""

from __future__ import annotations

from planish.ir.text.parser import Weights, parse_module
from planish.ir.text.printer import FunctionPrinter, print_function, print_module

__all__ = ["FunctionPrinter", "Weights", "parse_module", "print_function", "print_module"]
