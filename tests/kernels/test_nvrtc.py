"""The cache of compiled kernels, its damage, and what is said where something is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clearn.kernels import _nvrtc, cuda


class Compiler:
    """Stands for NVRTC."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, source: str, architecture: str) -> bytes:
        self.calls.append((source, architecture))
        return f"{source} for {architecture}".encode()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    made = Compiler()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_nvrtc, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(_nvrtc, "compile_source", made)
    return made


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No memory of what an earlier test loaded, and none of what this one did."""
    for function in (_nvrtc.function, _nvrtc._library, _nvrtc.nvrtc_version, cuda._architecture):
        function.cache_clear()
    yield
    for function in (_nvrtc.function, _nvrtc._library, cuda._architecture):
        function.cache_clear()


def test_a_source_is_compiled_once_per_architecture(compiler: Compiler, tmp_path: Path) -> None:
    for _ in range(3):
        assert _nvrtc.binary("bitmask", "sm_80") == b"bitmask for sm_80"
        assert _nvrtc.binary("bitmask", "sm_90") == b"bitmask for sm_90"
        assert _nvrtc.binary("topc", "sm_90") == b"topc for sm_90"
    assert len(compiler.calls) == 3
    kept = sorted(path.name for path in (tmp_path / "clearn" / "kernels").iterdir())
    assert [name.rpartition("-")[0] for name in kept] == [
        "bitmask-sm_80",
        "bitmask-sm_90",
        "topc-sm_90",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"",
        lambda content: content[:7],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    ],
)
def test_a_damaged_file_is_made_again(damage: Any, compiler: Compiler, tmp_path: Path) -> None:
    code = _nvrtc.binary("masked", "sm_75")
    (path,) = (tmp_path / "clearn" / "kernels").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert _nvrtc.binary("masked", "sm_75") == code
    assert path.read_bytes() == whole
    assert len(compiler.calls) == 2


def test_the_name_changes_with_what_goes_in(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "sources"
    copy.mkdir()
    for path in (*_nvrtc._SOURCES.glob("*.cu"), *_nvrtc._SOURCES.glob("*.cuh")):
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(_nvrtc, "_SOURCES", copy)
    names = {_nvrtc._cached("topc", "sm_90")}
    for name in ("topc.cu", "common.cuh"):
        with (copy / name).open("a") as file:
            file.write("// changed\n")
        names.add(_nvrtc._cached("topc", "sm_90"))
    (copy / "bitmask.cu").write_text("// of no concern\n")
    names.add(_nvrtc._cached("topc", "sm_90"))
    monkeypatch.setattr(_nvrtc, "nvrtc_version", lambda: "13.1")
    names.add(_nvrtc._cached("topc", "sm_90"))
    monkeypatch.setattr(_nvrtc, "_OPTIONS", {"std": "c++20"})
    names.add(_nvrtc._cached("topc", "sm_90"))
    assert len(names) == 5


def test_without_a_folder_to_write_to(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "clearn").write_text("a file where the folder should be")
    assert _nvrtc.binary("symbols", "sm_80") == b"symbols for sm_80"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert _nvrtc.binary("symbols", "sm_80") == b"symbols for sm_80"
    assert not list((tmp_path / "full" / "clearn" / "kernels").iterdir())


def test_the_home_folder_is_the_default(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _nvrtc._cached("topc", "sm_90").parent == tmp_path / ".cache" / "clearn" / "kernels"


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.core", "cuda.bindings.driver", "cuda.bindings.nvrtc"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=r"needs cuda-core, .* pip install 'clearn\[cuda\]'"):
            _nvrtc.module(name)


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("libnvrtc.so.13 not found")

    monkeypatch.setattr(_nvrtc, "module", lambda name: SimpleNamespace(nvrtcVersion=missing))
    with pytest.raises(ImportError, match=r"needs NVRTC, .*libnvrtc\.so\.13 not found.* install"):
        _nvrtc.nvrtc_version()


def test_a_source_that_does_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cuda.core", reason="needs cuda-core")
    try:
        _nvrtc.nvrtc_version()
    except ImportError as error:
        pytest.skip(f"needs NVRTC: {error}")
    (tmp_path / "wrong.cu").write_text('extern "C" __global__ void f() { nonsense; }')
    monkeypatch.setattr(_nvrtc, "_SOURCES", tmp_path)
    with pytest.raises(
        RuntimeError, match=r'wrong\.cu does not compile for sm_90: [\s\S]*"nonsense"'
    ):
        _nvrtc.compile_source("wrong", "sm_90")


class Driver:
    """Stands for the CUDA driver."""

    def __init__(self, context: int, result: int) -> None:
        self.context, self.result = context, result
        self.launches: list[tuple[Any, ...]] = []

    def cuCtxGetCurrent(self) -> tuple[int, int]:
        return 0, self.context

    def cuLaunchKernel(self, *arguments: Any) -> tuple[Any]:
        self.launches.append(arguments)
        return (self.result and SimpleNamespace(name="CUDA_ERROR_LAUNCH_FAILED"),)


@pytest.mark.parametrize("context", [0, 77])
def test_a_launch_uses_the_current_stream_of_the_tensors_device(
    context: int, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    driver = Driver(context, 0)
    driver.CUfunction = lambda handle: ("function", handle)
    core = SimpleNamespace(
        Device=lambda index: SimpleNamespace(set_current=lambda: chosen.append(index)),
        ObjectCode=SimpleNamespace(
            from_cubin=lambda code, name: SimpleNamespace(
                get_kernel=lambda kernel: SimpleNamespace(handle=len(code) + len(kernel))
            )
        ),
    )
    modules = {"cuda.bindings.driver": driver, "cuda.core": core}
    monkeypatch.setattr(_nvrtc, "module", modules.__getitem__)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    streams = {3: SimpleNamespace(cuda_stream=1234)}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[device.index])
    device = torch.device("cuda", 3)
    arguments = (cuda.ctypes.c_void_p * 1)(5)
    cuda._run(device, "topc", "narrow_float32", (7, 2), 256, arguments)
    handle = len(b"topc for sm_90") + len("narrow_float32")
    address = cuda.ctypes.addressof(arguments)
    assert driver.launches == [(("function", handle), 7, 2, 1, 256, 1, 1, 0, 1234, address, 0)]
    assert chosen == ([] if context else [3])  # a thread that has no context yet gets one
    driver.result = 1
    with pytest.raises(RuntimeError, match="narrow_float32 could not be launched: CUDA_ERROR_LAUN"):
        cuda._run(device, "topc", "narrow_float32", (7, 2), 256, arguments)
