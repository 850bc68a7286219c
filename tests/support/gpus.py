"""What tests of CUDA need of the machine: nvcc and the C++ compiler it calls, or a GPU. Without it they are skipped."""

from __future__ import annotations

import shutil
from functools import cache

import pytest

from planish.codegen.runtime.cuda import CudaDevice
from planish.ir import InputError, UnsupportedError
from planish.targets.cuda.compiler import find_nvcc


@cache
def _missing_nvcc() -> str:
    try:
        find_nvcc()
    except UnsupportedError as missing:
        return str(missing)
    return "" if shutil.which("g++") else "nvcc needs g++, which is not installed"


@cache
def _gpu() -> CudaDevice | str:
    try:
        return CudaDevice()
    except InputError as missing:
        return str(missing)


def need_nvcc() -> None:
    """Skip the running test, saying why, where nothing can be compiled for CUDA."""
    if missing := _missing_nvcc():
        pytest.skip(missing)


def need_gpu() -> CudaDevice:
    """This machine's first GPU; skips the running test, saying why, where there is none."""
    found = _gpu()
    if isinstance(found, str):
        pytest.skip(found)
    return found


__all__ = ["need_gpu", "need_nvcc"]
