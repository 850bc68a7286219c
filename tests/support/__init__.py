"""Generators, laws and oracles of the tests, installed as `planish.testing` for authors of passes and operations.

`modules` draws whole modules, `tensors` legal operands and calls, `attributes` types and attributes, `corruptions` breaks
modules, `references` states each operation once more in numpy, `profiles` sets how long a search is.
"""

from __future__ import annotations
