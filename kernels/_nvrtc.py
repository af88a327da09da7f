"""The `.cu` sources beside this module as functions of the CUDA driver, compiled once per machine.

NVRTC compiles a source for one architecture, through cuda-core. The machine code is kept on disk,
under a name that changes with all that goes into it.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

_SOURCES = Path(__file__).parent
_OPTIONS = {"std": "c++17"}
_DIGEST_BYTES = 32  # of the checksum before the machine code


@cache
def function(source: str, kernel: str, architecture: str) -> Any:
    """A kernel, for any device of its architecture.

    Args:
        source: Name of the file, without ".cu".
        kernel: Name in it.
        architecture: As "sm_90".

    Returns:
        A `CUfunction`.

    Raises:
        ImportError: As `compile_source`.
        RuntimeError: As `compile_source`.
    """
    handle = _library(source, architecture).get_kernel(kernel).handle
    return module("cuda.bindings.driver").CUfunction(int(handle))


@cache
def _library(source: str, architecture: str) -> Any:
    return module("cuda.core").ObjectCode.from_cubin(binary(source, architecture), name=source)


def binary(source: str, architecture: str) -> bytes:
    """The machine code of a source, from the disk when it is there and whole.

    Args and errors are those of `compile_source`. A folder that cannot be read or written is done
    without.
    """
    path = _cached(source, architecture)
    with suppress(OSError):
        stored = path.read_bytes()
        digest, code = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if sha256(code).digest() == digest:
            return code
    code = compile_source(source, architecture)
    with suppress(OSError):
        _write(path, sha256(code).digest() + code)
    return code


def compile_source(source: str, architecture: str) -> bytes:
    """Compile a source; needs no device.

    Args:
        source: Name of the file, without ".cu".
        architecture: As "sm_90".

    Returns:
        A cubin.

    Raises:
        ImportError: cuda-core or NVRTC is not installed.
        RuntimeError: NVRTC does not accept the source or the architecture.
    """
    core = module("cuda.core")
    nvrtc_version()
    path = _SOURCES / f"{source}.cu"
    options = core.ProgramOptions(
        name=path.name, arch=architecture, include_path=str(_SOURCES), **_OPTIONS
    )
    try:
        program = core.Program(path.read_text(encoding="utf-8"), "c++", options)
        return bytes(program.compile("cubin").code)
    except Exception as error:  # cuda-core declares no type of its own
        raise RuntimeError(f"{path.name} does not compile for {architecture}: {error}") from error


@cache
def nvrtc_version() -> str:
    """The version of NVRTC.

    Raises:
        ImportError: It or cuda-core is not installed.
    """
    try:
        _, major, minor = module("cuda.bindings.nvrtc").nvrtcVersion()
    except RuntimeError as error:
        raise ImportError(
            f"clearn.kernels on CUDA needs NVRTC, which cannot be loaded ({error}): install "
            f"cuda-bindings of the CUDA version of torch, {torch.version.cuda}"
        ) from error
    return f"{major}.{minor}"


def module(name: str) -> Any:
    """A module of cuda-core.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"clearn.kernels on CUDA needs cuda-core, which cannot be imported ({error}): "
            "pip install 'clearn[cuda]'"
        ) from error


def _cached(source: str, architecture: str) -> Path:
    """Where the machine code is kept, if it can be."""
    key = sha256(repr((_OPTIONS, architecture, nvrtc_version())).encode())
    for path in (_SOURCES / f"{source}.cu", *sorted(_SOURCES.glob("*.cuh"))):
        key.update(path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = f"{source}-{architecture}-{key.hexdigest()[:32]}.cubin"
    return Path(home, "clearn", "kernels", name)


def _write(path: Path, content: bytes) -> None:
    """Write a file all at once: others see it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
