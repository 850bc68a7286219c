"""From a .pt2 file to a module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from planish.frontends.exported import import_exported
from planish.frontends.pt2_archive import data_only
from planish.ir import InputError, Module


def import_pt2(path: str | Path) -> Module:
    """The module of a program that torch.export.save wrote.

    Nothing in the file is unpickled or run. Symbols are named after the first input and axis where they occur ("x_0"),
    because the file does not keep the names of Dims.

    Raises:
        InputError: for a missing or damaged file.
        UnsupportedError: for a file that holds more than data, or a program that cannot be imported.
    """
    archive = data_only(Path(path))
    with _quiet("torch.export", "torch._export"):
        try:
            program = torch.export.load(archive)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{path} cannot be loaded by torch {torch.__version__} ({reason}); export it again with this version"
            ) from error
    return import_exported(program, metadata={"kind": "plain"})


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without log lines of these loggers; what matters of them is in the error raised."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
