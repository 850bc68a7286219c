"""The intermediate representation: types, encodings, operations, modules, their text form, verifier and interpreter."""

from __future__ import annotations

if __name__ == "ir":
    raise ImportError("import planish.ir, not ir: a second copy of every class would follow")

from planish.ir.builder import Builder, Rewriter
from planish.ir.capabilities import Capabilities
from planish.ir.encodings import Dense, Encoding, Float8, Grouped, GroupedInt, Levels, MxFp4, NvFp4
from planish.ir.errors import InputError, IRError, PlanishError, UnsupportedError
from planish.ir.interpret import Interpreter, Result
from planish.ir.module import Function, Module, Node, Operand, ParamRef, State, StateRef, Value
from planish.ir.op import Chooser, Op, Sample
from planish.ir.params import Computed, InFile, InMemory, Missing, Param, Source, dense_param
from planish.ir.ranges import input_ranges
from planish.ir.structural_hash import structural_hash
from planish.ir.text import parse_module, print_function, print_module
from planish.ir.types import Dim, TensorType, symbol
from planish.ir.verify import Fault, find_faults, verify

__all__ = [
    "Builder", "Capabilities", "Chooser", "Computed", "Dense", "Dim", "Encoding", "Fault", "Float8", "Function",
    "Grouped", "GroupedInt", "IRError", "InFile", "InMemory", "InputError", "Interpreter", "Levels", "Missing",
    "Module", "MxFp4", "Node", "NvFp4", "Op", "Operand", "Param", "ParamRef", "PlanishError", "Result", "Rewriter",
    "Sample", "Source", "State", "StateRef", "TensorType", "UnsupportedError", "Value", "dense_param", "find_faults",
    "input_ranges", "parse_module", "print_function", "print_module", "structural_hash", "symbol", "verify",
]  # fmt: skip
