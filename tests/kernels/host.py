"""A GPU made of one CPU thread: the kernels' sources, compiled by a host compiler.

`Host.run` takes the place of `clearn.kernels.cuda._run`, so that everything but the launch itself
is what runs on a GPU: the sources, the arguments, the sizes of the grids.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from clearn.kernels import bitmask, masked, tag, topc  # noqa: F401  (they define the operators)

ROOT = Path(__file__).parents[2]
SHIM = Path(__file__).parent / "host_shim"
SOURCES = sorted(path.stem for path in (ROOT / "kernels").glob("*.cu"))
COMPILER = shutil.which("g++") or shutil.which("clang++")

FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"),
    *(f"-I{ROOT / 'kernels'}", f"-I{SHIM}"),
    # A 16-byte access to an address that is no multiple of 16 stops the process.
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow",
    "-fsanitize-undefined-trap-on-error",
    "-U_FORTIFY_SOURCE",  # it takes a jump to another fiber's stack for a mistake
]

needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="needs a C++ compiler (g++ or clang++); none found"
)

CUDA_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def on_cuda(name: str, *arguments: Any) -> Any:
    """Call an operator the way the dispatcher does for CUDA tensors, on any tensors."""
    return getattr(torch.ops.clearn, name).default.redispatch(CUDA_KEY, *arguments)


def kernels(source: str) -> list[str]:
    """Names of the kernels in a source, as the compiler sees them after its macros."""
    command = [str(COMPILER), "-E", "-P", "-xc++", f"-I{SHIM}", "-"]
    path = ROOT / "kernels" / f"{source}.cu"
    macros = "#define __global__ KERNEL\n#define __launch_bounds__(threads)\n"
    text = f'{macros}#include "{path}"\n'
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return re.findall(r'extern "C" KERNEL void\s+(\w+)\(', done.stdout)


class Host:
    """Compiles on demand into `folder`; `order` is that of threads and blocks, see the shim."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order = 0
        self.libraries: dict[str, ctypes.CDLL] = {}

    def library(self, source: str) -> ctypes.CDLL:
        if source not in self.libraries:
            names = "".join(f"HOST_KERNEL({name})\n" for name in kernels(source))
            text = f'#include "cuda_host.h"\n#include "{source}.cu"\n{names}'
            path = self.folder / f"{source}.so"
            command = [str(COMPILER), *FLAGS, "-xc++", "-", "-o", str(path)]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            assert not done.returncode, done.stderr
            self.libraries[source] = ctypes.CDLL(str(path))
        return self.libraries[source]

    def run(
        self,
        device: torch.device,
        source: str,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        arguments: ctypes.Array[ctypes.c_void_p],
        blocks: range | None = None,
    ) -> None:
        """Run a grid, or only some of its blocks."""
        launch = getattr(self.library(source), f"host_{kernel}")
        part = blocks or range(grid[0] * grid[1])
        status = launch(
            (ctypes.c_uint * 2)(*grid),
            ctypes.c_uint(threads),
            arguments,
            self.order,
            ctypes.c_uint64(part.start),
            ctypes.c_uint64(part.stop),
        )
        assert status == 0, f"{kernel}: a barrier that not all threads reach"
