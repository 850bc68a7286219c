"""Reading a .pt2 archive without letting it run code.

torch.export.load unpickles example inputs and some tensors, loads compiled libraries, and evaluates size expressions as
Python. So the archive is first copied with only the parts that are data: the program as JSON, raw tensors and their
tables. The example inputs are left out, and everything in the JSON that torch would evaluate or look up is checked
against what torch.export itself writes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from planish.ir import InputError, UnsupportedError

# Members without the archive's root folder; the model's name is what torch.export.save always gives it.
_DATA = re.compile(
    r"models/model\.json|data/(weights/weight|constants/tensor)_\d+|data/(weights|constants)/model_\w+_config\.json"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"

_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(?:, \w+=(?:True|False))*\)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_SIZE_NAMES = {
    "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "False", "FloatTrueDiv", "Float", "FloorDiv",
    "FloorToInt", "GreaterThan", "Identity", "IntTrueDiv", "Integer", "LessThan", "Max", "Min", "Mod", "ModularIndexing",
    "Mul", "Ne", "Not", "Or", "Piecewise", "Pow", "PowByNatural", "PythonMod", "Rational", "StrictGreaterThan",
    "StrictLessThan", "ToFloat", "True", "TruncToInt", "Unequality", "Where", "false", "int_oo", "oo", "true",
}  # fmt: skip
_SIZE_SIGNS = re.compile(r"[\w\s()+\-*/,.<>=]*")
_TARGET = re.compile(
    r"torch\.ops\.[a-z]\w*\.\w+\.\w+|torch\.ops\.higher_order\.\w+|torch\.sym_\w+|math\.trunc"
    r"|_operator\.(getitem|eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift)"
)
_CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", "builtins.NoneType", "collections.OrderedDict"}


def data_only(path: Path) -> io.BytesIO:
    """A copy of the archive, in memory, that torch.export.load reads without unpickling or evaluating anything foreign.

    Raises:
        InputError: when the file is missing or no such archive.
        UnsupportedError: when it holds something that could run code, naming it.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file that torch.export.save wrote")
    clean = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(clean, "w") as copy:
            names = archive.namelist()
            if not any(name.endswith("/models/model.json") for name in names):
                raise InputError(f"{path} is no exported program; give a file that torch.export.save wrote")
            for name in names:
                copy.writestr(name, _checked(path, name, archive))
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is damaged or not a .pt2 archive ({error}); export it again") from error
    clean.seek(0)
    return clean


def _checked(path: Path, name: str, archive: zipfile.ZipFile) -> bytes:
    """The content of one member to copy; refuses what is not data."""
    member = name.partition("/")[2]
    if member == _SAMPLE_INPUTS:
        return b""
    if member.startswith("extra/"):
        return archive.read(name)
    if not _DATA.fullmatch(member):
        raise UnsupportedError(
            f"{path} holds {member}, which torch would unpickle or run; save the exported program alone, "
            "with torch.export.save"
        )
    content = archive.read(name)
    if not member.endswith(".json"):
        return content
    try:
        document = json.loads(content)
    except ValueError as error:
        raise InputError(f"{member} in {path} is not JSON ({error}); export the program again") from error
    _check(path, document)
    return json.dumps(document).encode()


def _check(path: Path, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check(path, item)
    if not isinstance(value, dict):
        return
    if value.get("use_pickle"):
        raise UnsupportedError(f"{path} holds a pickled tensor ({value.get('path_name')}); export it as a plain tensor")
    if "guards_code" in value:
        value["guards_code"] = []
    for key, item in value.items():
        if isinstance(item, str):
            _check_text(path, key, item)
        else:
            _check(path, item)


def _check_text(path: Path, key: str, text: str) -> None:
    if key == "expr_str" and not _is_size(text):
        raise UnsupportedError(f"{path} holds the size expression {text[:80]!r}, which is not plain arithmetic")
    if key == "target" and not _TARGET.fullmatch(text):
        raise UnsupportedError(f"{path} calls {text[:80]!r}, which is not an operator")
    if key in ("in_spec", "out_spec"):
        foreign = sorted(set(re.findall(r'"type":\s*"([^"]*)"', text)) - _CONTAINERS)
        if foreign:
            raise UnsupportedError(f"{path} passes {', '.join(foreign)}; export it with tensors in plain containers")


def _is_size(text: str) -> bool:
    """Whether a text is arithmetic over the symbols and functions that torch.export writes sizes with."""
    rest = _SYMBOL.sub("0", text)
    # A dot may only be a decimal point: attributes are a way out of arithmetic.
    attribute = re.search(r"\.\s*[A-Za-z_]|[A-Za-z_)]\s*\.", rest)
    return bool(_SIZE_SIGNS.fullmatch(rest)) and not attribute and set(_NAME.findall(rest)) <= _SIZE_NAMES
